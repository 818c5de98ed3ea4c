"""What each instruction of PTX does to some lanes of tests/ptx.py's threads; control is not here."""

import operator

import numpy as np

from tests.ptx import LANES, PtxError, dtype_of

PLAIN = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "min": np.fmin,
    "max": np.fmax,
}
PLAIN |= {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
COMPARE = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
COMPARE |= {"eq": np.equal, "ne": np.not_equal}
COMPARE |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}


def fma(a, b, c):
    """a * b + c, rounded once: in the next wider type to odd, then to nearest (Boldo and Melquiond, 2008)."""
    if a.dtype == np.float64:
        return (a.astype(np.longdouble) * b + c).astype(np.float64)  # nearly: 64 bits for 106
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    back = total - product
    lost = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    inexact = (lost != 0) & np.isfinite(lost) & (bits & 1 == 0)
    bits += inexact * np.where((lost > 0) == (total > 0), 1, -1)
    return total.astype(np.float32)


def divide(a, b, remainder=False):
    if a.dtype.kind == "f":
        return a / b
    zero = b == 0
    b = np.where(zero, b.dtype.type(1), b)
    quotient = a // b
    if a.dtype.kind == "i":  # PTX cuts towards zero
        quotient = quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)
    result = a - quotient * b if remainder else quotient
    return np.where(zero, a if remainder else ~a.dtype.type(0), result).astype(a.dtype)


def to_bf16(x):
    bits = x.view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(x), 0x7FFF, nearest).astype(np.uint16)


def convert(t, opcode, operands, lanes):
    to, kind = opcode[-2:]
    if to == "bf16":
        return to_bf16(t.get(operands[1], "f32", lanes))
    if to == "tf32":
        return (t.get(operands[1], "u32", lanes) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    if kind == "bf16":
        return (t.get(operands[1], "u16", lanes).astype(np.uint32) << np.uint32(16)).view(
            np.float32
        )
    values = t.get(operands[1], kind, lanes)
    return (np.trunc(values) if "rzi" in opcode else values).astype(dtype_of(to))


def shift(t, opcode, operands, lanes):
    kind = opcode[-1]
    value, by = t.get(operands[1], kind, lanes), t.get(operands[2], "u32", lanes)
    width = 8 * value.dtype.itemsize
    some = np.minimum(by, width - 1).astype(value.dtype)
    if opcode[0] == "shr":
        filled = value >> (value.dtype.type(width - 1)) if value.dtype.kind == "i" else value * 0
        return np.where(by >= width, filled, value >> some)
    return np.where(by >= width, value.dtype.type(0), value << some)


def arithmetic(t, opcode, operands, lanes):
    """Of what has no case of its own in `step`."""
    name, kind = opcode[0], opcode[-1]
    if "wide" in opcode:
        wide = dtype_of(f"{kind[0]}{2 * int(kind[1:])}")
        a, b = (t.get(o, kind, lanes).astype(wide) for o in operands[1:3])
        return (
            a * b + t.get(operands[3], wide.kind.replace("i", "s") + str(8 * wide.itemsize), lanes)
            if name == "mad"
            else a * b
        )
    values = [t.get(o, kind, lanes) for o in operands[1:]]
    if name == "mul" and "hi" in opcode:
        a, b = (v.astype(f"{v.dtype.kind}8") for v in values)
        return (a * b >> a.dtype.type(32)).astype(values[0].dtype)
    if name in PLAIN:
        return PLAIN[name](*values)
    if name == "mad":
        return values[0] * values[1] + values[2]
    if name == "fma":
        return fma(*values)
    if name in ("div", "rem"):
        return divide(*values, remainder=name == "rem")
    one = {
        "neg": np.negative,
        "not": np.invert,
        "abs": np.abs,
        "sqrt": np.sqrt,
        "rcp": np.reciprocal,
    }
    if name in one:
        return one[name](values[0])
    raise PtxError(f"unknown instruction {'.'.join(opcode)}")


def compare(t, opcode, operands, lanes):
    how, kind = opcode[1], opcode[-1]
    a, b = (t.get(o, kind, lanes) for o in operands[1:])
    if kind[0] == "f":
        apart = np.isnan(a) | np.isnan(b)
        if how in ("nan", "num"):
            return apart if how == "nan" else ~apart
        if how == "ne":  # of numbers: a NaN is not even unequal
            return (a != b) & ~apart
        if how[-1] == "u" and how[:-1] in COMPARE:
            return COMPARE[how[:-1]](a, b) | apart
    return COMPARE[how](a, b)


def move(t, opcode, operands, lanes):
    target, source = operands
    kind = opcode[-1]
    if target[0] == "{":
        names = target.strip("{}").replace(",", " ").split()
        bits, width = t.get(source, kind, lanes), int(kind[1:]) // len(names)
        for i, name in enumerate(names):
            t.put(name, (bits >> bits.dtype.type(i * width)).astype(f"u{width // 8}"), lanes)
        return
    if source[0] == "{":
        names = source.strip("{}").replace(",", " ").split()
        whole, width = dtype_of(kind), int(kind[1:]) // len(names)
        parts = [t.get(n, f"b{width}", lanes).astype(whole) for n in names]
        t.put(target, sum(p << whole.type(i * width) for i, p in enumerate(parts)), lanes)
        return
    t.put(target, t.get(source, kind, lanes), lanes)


def access(t, opcode, operands, lanes):
    """ld and st of param, shared and global, of one value or a vector."""
    loads, kind = opcode[0] == "ld", opcode[-1]
    where, names = (operands[1], operands[0]) if loads else (operands[0], operands[1])
    registers = names.strip("{}").replace(",", " ").split()
    each = dtype_of(kind).itemsize
    size = each * len(registers)
    space = next(s for s in ("param", "shared", "global") if s in opcode)
    address = t.address(where, lanes)
    if not loads:
        parts = [t.get(r, kind, lanes) for r in registers]
        values = np.stack([p.view(f"u{each}") for p in parts], 1).view(np.uint8)
        if space == "shared":
            t.shared[t.shared_places(address, size, lanes)] = values
        else:
            t.memory.write(address.astype(np.uint64), values)
        return
    if space == "param":
        found = t.parameters[address[:, None] + np.arange(size)]
    elif space == "shared":
        found = t.shared[t.shared_places(address, size, lanes)]
    else:
        found = t.memory.read(address.astype(np.uint64), size)
    values = np.ascontiguousarray(found).view(dtype_of(kind))
    for i, name in enumerate(registers):
        t.put(name, np.ascontiguousarray(values[:, i]), lanes)


def copy_async(t, opcode, operands, lanes):
    if "commit_group" in opcode or "wait_group" in opcode:
        return
    size = int(operands[2])
    to, source = t.address(operands[0], lanes), t.address(operands[1], lanes).astype(np.uint64)
    wanted = t.get(operands[3], "u32", lanes) if len(operands) > 3 else np.full(len(lanes), size)
    values = np.zeros((len(lanes), size), np.uint8)
    if not np.isin(wanted, (0, size)).all():
        raise PtxError("cp.async copies all or nothing here")
    values[wanted > 0] = t.memory.read(source[wanted > 0], size)
    t.shared[t.shared_places(to, size, lanes)] = values


def shuffle(t, opcode, operands, lanes):
    warps = t.whole_warps(lanes)
    value = t.get(operands[1], "b32", lanes).reshape(warps.shape)
    by = t.get(operands[2], "s32", lanes).reshape(warps.shape)
    bound = t.get(operands[3], "u32", lanes)
    if (bound != (0 if "up" in opcode else 31)).any():
        raise PtxError("a shuffle of less than a warp")
    source = {"down": LANES + by, "up": LANES - by, "bfly": LANES ^ by, "idx": by & 31}[opcode[2]]
    outside = (source < 0) | (source > 31)
    source = np.where(outside, LANES, source)
    target, _, exists = operands[0].partition("|")
    t.put(target, np.take_along_axis(value, source, 1).reshape(-1), lanes)
    if exists:
        t.put(exists, ~outside.reshape(-1), lanes)


def ballot(t, operands, lanes):
    warps = t.whole_warps(lanes)
    votes = t.predicate(operands[1], lanes).reshape(warps.shape)
    bits = (votes.astype(np.uint32) << LANES.astype(np.uint32)).sum(1, dtype=np.uint32)
    t.put(operands[0], np.repeat(bits, 32), lanes)


def load_matrices(t, opcode, operands, lanes):
    """ldmatrix.x4: lanes 8i to 8i+7 bring the rows of matrix i; lane l gets values 2(l%4) and the next of row l/4."""
    warps = t.whole_warps(lanes)
    rows = np.ascontiguousarray(t.shared[t.shared_places(t.address(operands[1], lanes), 16, lanes)])
    matrices = rows.view(np.uint16).reshape(len(warps), 4, 8, 8)
    if "trans" in opcode:
        matrices = matrices.swapaxes(2, 3)
    pairs = np.ascontiguousarray(matrices).view(np.uint32).reshape(len(warps), 4, 32)
    for i, name in enumerate(operands[0].strip("{}").replace(",", " ").split()):
        t.put(name, pairs[:, i].reshape(-1), lanes)


def multiply(t, opcode, operands, lanes):
    """mma.m16n8k16 of bf16 or f16, m16n8k8 of tf32: PTX ISA, "Matrix fragments"; g = lane / 4, q = lane % 4."""
    warps, kind = t.whole_warps(lanes), opcode[-2]
    g, q = LANES // 4, LANES % 4
    packed = 1 if kind == "tf32" else 2  # values in a register

    def registers(operand):
        names = operand.strip("{}").replace(",", " ").split()
        return names, [t.get(n, "b32", lanes).reshape(warps.shape) for n in names]

    def value(bits, half):
        if kind == "tf32":
            return (bits & np.uint32(0xFFFFE000)).view(np.float32)
        low = (bits >> np.uint32(16 * half)).astype(np.uint16)
        if kind == "f16":
            return low.view(np.float16).astype(np.float32)
        return (low.astype(np.uint32) << np.uint32(16)).view(np.float32)

    a, b = (
        np.zeros((len(warps), 16, 8 * packed), np.float32),
        np.zeros((len(warps), 8 * packed, 8), np.float32),
    )
    for half in range(packed):
        for r, bits in enumerate(registers(operands[1])[1]):
            term = q * packed + half + 4 * packed * (r >> 1)
            a[:, g + 8 * (r & 1), term] = value(bits, half)
        for r, bits in enumerate(registers(operands[2])[1]):
            b[:, q * packed + half + 4 * packed * r, g] = value(bits, half)
    sums = np.zeros((len(warps), 16, 8), np.float32)
    for r, bits in enumerate(registers(operands[3])[1]):
        sums[:, g + 8 * (r >> 1), 2 * q + (r & 1)] = bits.view(np.float32)
    for k in range(a.shape[2]):
        sums += a[:, :, k, None] * b[:, None, k, :]
    for r, name in enumerate(registers(operands[0])[0]):
        out = sums[:, g + 8 * (r >> 1), 2 * q + (r & 1)]
        t.put(name, np.ascontiguousarray(out).reshape(-1), lanes)


def step(t, opcode, operands, lanes):
    """Does one instruction."""
    name, kind = opcode[0], opcode[-1]
    whole = {"ld": access, "st": access, "mov": move, "cp": copy_async, "shfl": shuffle}
    whole |= {"ldmatrix": load_matrices, "mma": multiply}
    if name in whole:
        whole[name](t, opcode, operands, lanes)
    elif name == "vote":
        ballot(t, operands, lanes)
    elif name == "cvta":
        t.put(operands[0], t.get(operands[1], "u64", lanes), lanes)
    elif name == "setp":
        t.put(operands[0], compare(t, opcode, operands, lanes), lanes)
    elif name == "selp":
        a, b = (t.get(o, kind, lanes) for o in operands[1:3])
        t.put(operands[0], np.where(t.predicate(operands[3], lanes), a, b), lanes)
    elif name == "cvt":
        t.put(operands[0], convert(t, opcode, operands, lanes), lanes)
    elif name in ("shl", "shr"):
        t.put(operands[0], shift(t, opcode, operands, lanes), lanes)
    elif name == "bfi":
        a, b = (t.get(o, "u32", lanes) for o in operands[1:3])
        at, mask = np.uint32(int(operands[3])), np.uint32((1 << int(operands[4])) - 1)
        t.put(operands[0], (b & ~(mask << at)) | ((a & mask) << at), lanes)
    else:
        t.put(operands[0], arithmetic(t, opcode, operands, lanes), lanes)
