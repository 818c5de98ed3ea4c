"""The PTX that nvcc wrote, run by numpy: one array element for each thread of a launch, a few blocks at a time.

It knows the instructions that pyconv's kernels are made of, and raises at any other. Threads run from
the smallest program counter on, so that those that parted meet again; a barrier, or what the lanes of a
warp do together, wants all of them there. Copies by cp.async happen at once.
Source: PTX ISA 9.0, https://docs.nvidia.com/cuda/parallel-thread-execution
"""

import re
from dataclasses import dataclass, field
from functools import cache

import numpy as np

BLOCKS_AT_ONCE = 64
LANES = np.arange(32)


class PtxError(RuntimeError):
    """The kernel did what it must not, or what this file does not know."""


@cache
def dtype_of(kind):
    """numpy's type for .s32, .b16, .f64 ..."""
    if kind == "pred":
        return np.dtype(bool)
    letter = {"s": "i", "u": "u", "b": "u", "f": "f"}[kind[0]]
    return np.dtype(f"{letter}{int(kind[1:]) // 8}")


class Memory:
    """Global memory: the operands of a call, and nothing else."""

    def __init__(self):
        self.operands = []  # (name, address, its bytes, whether they may be written)

    def places(self, addresses, size, writes):
        """(lanes, bytes, offsets) for each operand that is touched."""
        left = len(addresses)
        if (addresses % size).any():
            raise PtxError(f"misaligned access of {size} bytes")
        for name, start, data, writable in self.operands:
            inside = (addresses >= start) & (addresses + np.uint64(size) <= start + data.size)
            if inside.any():
                if writes and not writable:
                    raise PtxError(f"{name} is written")
                left -= int(inside.sum())
                yield inside, data, (addresses[inside] - np.uint64(start)).astype(np.int64)
        if left:
            raise PtxError(f"out of bounds: {left} lanes touch what is no operand")

    def read(self, addresses, size):
        found = np.empty((len(addresses), size), np.uint8)
        for lanes, data, offsets in self.places(addresses, size, False):
            found[lanes] = data[offsets[:, None] + np.arange(size)]
        return found

    def write(self, addresses, values):
        size = values.shape[1]
        for lanes, data, offsets in self.places(addresses, size, True):
            data[offsets[:, None] + np.arange(size)] = values[lanes]


@dataclass
class Kernel:
    """An .entry: parameters as {name: (offset, bytes)}, registers as {name: type}, and code."""

    name: str
    parameters: dict
    registers: dict
    code: list  # (predicate or "", [opcode parts], [operands])
    labels: dict = field(default_factory=dict)


def operands_of(text):
    return [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", text)]


def parse(text):
    """Every kernel of a .ptx file, by its mangled name."""
    text = re.sub(r"//[^\n]*", "", text)
    found = {}
    for m in re.finditer(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\n\{(.*?)\n\}", text, re.S):
        kernel = Kernel(m[1], {}, {}, [])
        offset = 0
        declared = r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?"
        for align, kind, name, count in re.findall(declared, m[2]):
            size = int(kind[1:]) // 8
            step = int(align or size)
            offset = -(-offset // step) * step
            kernel.parameters[name] = (offset, size * int(count or 1))
            offset += size * int(count or 1)
        for statement in re.sub(r"(\$\w+):", r"\1:;", m[4]).split(";"):
            add_statement(kernel, statement.strip())
        found[kernel.name] = kernel
    return found


def add_statement(kernel, text):
    if text.endswith(":"):
        kernel.labels[text[:-1]] = len(kernel.code)
    elif m := re.match(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>", text):
        kernel.registers.update({f"{m[2]}{i}": m[1] for i in range(int(m[3]))})
    elif m := re.match(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.S):
        kernel.code.append((m[1] or "", m[2].split("."), operands_of(m[3])))
    elif text and not text.startswith((".pragma", ".loc")):
        raise PtxError(f"unknown statement: {text}")


class Threads:
    """The threads of some blocks of a launch: their registers, shared memory and program counters."""

    def __init__(self, kernel, blocks, grid, block, shared_bytes, parameters, memory):
        per_block = block[0] * block[1] * block[2]
        self.kernel, self.memory = kernel, memory
        self.parameters = np.frombuffer(parameters, np.uint8)
        self.n = len(blocks) * per_block
        self.block = np.repeat(np.arange(len(blocks)), per_block)
        thread = np.tile(np.arange(per_block), len(blocks))
        self.warp = self.block * -(-per_block // 32) + thread // 32
        self.lane = thread % 32
        self.registers = {
            name: np.zeros(self.n, "?" if kind == "pred" else f"u{int(kind[1:]) // 8}")
            for name, kind in kernel.registers.items()
        }
        rest = thread
        for axis, letter in enumerate("xyz"):
            self.special("tid", letter, rest % block[axis])
            self.special("ctaid", letter, np.array(blocks)[self.block, axis])
            self.special("ntid", letter, np.full(self.n, block[axis]))
            self.special("nctaid", letter, np.full(self.n, grid[axis]))
            rest = rest // block[axis]
        self.shared_bytes = shared_bytes
        self.shared = np.full((len(blocks), shared_bytes), 0xFF, np.uint8)
        self.pc = np.zeros(self.n, np.int64)
        self.alive = np.ones(self.n, bool)
        self.waiting = np.zeros(self.n, bool)

    def special(self, name, letter, values):
        self.registers[f"%{name}.{letter}"] = values.astype(np.uint32)

    # --- operands

    def get(self, operand, kind, lanes):
        """The values of an operand in some lanes, as numpy's type for `kind`."""
        dtype = dtype_of(kind)
        if operand in self.registers:
            values = self.registers[operand][lanes]
            if values.dtype.itemsize > dtype.itemsize:
                values = values.astype(f"u{dtype.itemsize}")  # the low bits
            return values.view(dtype)
        if operand[:2] in ("0f", "0F", "0d", "0D"):
            bits = np.array(int(operand[2:], 16), f"u{dtype.itemsize}")
        elif operand in self.kernel.parameters:
            bits = np.array(self.kernel.parameters[operand][0], np.uint64)
        elif re.fullmatch(r"-?\w+", operand) and operand.lstrip("-")[0].isdigit():
            if kind == "pred":
                return np.full(len(lanes), int(operand, 0) != 0)
            mask = (1 << 8 * dtype.itemsize) - 1
            bits = np.array(int(operand, 0) & mask, f"u{dtype.itemsize}")
        elif operand.endswith("shared_memoryE"):
            bits = np.array(0, f"u{dtype.itemsize}")
        else:
            raise PtxError(f"unknown operand {operand}")
        return np.full(len(lanes), bits.view(dtype))

    def put(self, name, values, lanes):
        register = self.registers[name]
        if register.dtype == bool:
            register[lanes] = values
            return
        if values.dtype.kind == "f" or values.dtype.itemsize == register.dtype.itemsize:
            values = values.view(f"u{values.dtype.itemsize}")
        register[lanes] = values.astype(register.dtype)  # wider: extended by its own sign

    def address(self, operand, lanes):
        """Of [register], [register+n], [name] or [name+n]."""
        base, offset = re.fullmatch(r"\[([%\w$]+)\s*(?:\+\s*(-?\d+))?\]", operand).groups()
        width = "u64" if self.registers.get(base, np.zeros(0, "u8")).dtype.itemsize == 8 else "u32"
        start = self.get(base, width, lanes).astype(np.int64)
        return start + int(offset or 0)

    def shared_places(self, offsets, size, lanes):
        if (offsets < 0).any() or (offsets + size > self.shared_bytes).any():
            raise PtxError(f"out of bounds of {self.shared_bytes} bytes of shared memory")
        if (offsets % size).any():
            raise PtxError(f"misaligned access of {size} bytes of shared memory")
        return self.block[lanes][:, None], offsets[:, None] + np.arange(size)

    def predicate(self, name, lanes):
        return self.registers[name.lstrip("!")][lanes] ^ (name[0] == "!")

    # --- control

    def run(self, step):
        """Runs all to their end; step(threads, opcode, operands, lanes) does what is no control."""
        code = self.kernel.code
        while self.alive.any():
            ready = self.alive & ~self.waiting
            if not ready.any():
                self.open_barriers()
                continue
            at = int(self.pc[ready].min())
            here = ready & (self.pc == at)
            others = self.pc[ready & ~here]
            until = int(others.min()) if others.size else len(code)
            self.straight(step, np.flatnonzero(here), at, until)

    def straight(self, step, lanes, at, until):
        """From `at` on, until a branch parts the lanes, they meet others, or they have to wait."""
        code = self.kernel.code
        while at < len(code):
            predicate, opcode, operands = code[at]
            taken = lanes[self.predicate(predicate, lanes)] if predicate else lanes
            if opcode[0] == "bra":
                self.pc[lanes] = at + 1
                self.pc[taken] = self.kernel.labels[operands[0]]
                return
            if opcode[0] in ("ret", "exit"):
                self.alive[taken] = False
                self.pc[lanes] = at + 1
                return
            if opcode[0] in ("bar", "barrier"):
                self.pc[lanes] = at
                self.waiting[lanes] = True
                return
            if taken.size:
                step(self, opcode, operands, taken)
            at += 1
            if at >= until:
                break
        self.pc[lanes] = at
        if at >= len(code):
            self.alive[lanes] = False

    def open_barriers(self):
        for b in range(len(self.shared)):
            mine = self.alive & (self.block == b)
            if mine.any():
                if len(np.unique(self.pc[mine])) > 1:
                    raise PtxError("barrier divergence")
                self.pc[mine] += 1
                self.waiting[mine] = False

    def whole_warps(self, lanes):
        """The lanes by warp, (warps, 32); all that live must be there."""
        warps = np.unique(self.warp[lanes])
        if len(lanes) != 32 * len(warps) or np.isin(self.warp[self.alive], warps).sum() != len(
            lanes
        ):
            raise PtxError("a warp does together what some of its lanes are not there for")
        return lanes.reshape(-1, 32)


def launch(kernel, grid, block, shared_bytes, parameters, memory, step):
    """Runs every block of a launch; `parameters` are the bytes that a GPU would find them in."""
    blocks = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    with np.errstate(all="ignore"):
        for i in range(0, len(blocks), BLOCKS_AT_ONCE):
            some = blocks[i : i + BLOCKS_AT_ONCE]
            Threads(kernel, some, grid, block, shared_bytes, parameters, memory).run(step)
