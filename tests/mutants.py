"""Mistakes planted in the CUDA kernels, to see whether anything would notice: the tests of the tests.

A mutant is one place in one file of csrc/cuda, changed. All of them are compiled at once, into a copy of
the sources in which each place asks a number which of its versions to run:

    copy_async_wait<1>()   becomes   (pyconv_planted == 7 ? copy_async_wait<2>() : copy_async_wait<1>())

so that a hundred mutants cost one build of the emulator, and the number 0 is the kernel as it is.
Source: Untch, Offutt and Harrold, Mutation analysis using mutant schemata, ISSTA 1993.

    python -m tests.mutants    writes the table of docs/cuda.md
"""

from dataclasses import dataclass
from pathlib import Path

from pyconv._emulator import build

ROOT = Path(__file__).parents[1]
MARK, END = "<!-- mutants -->\n", "<!-- end -->\n"
GEMM, CORES, CHUNKS = "conv2d/implicit_gemm.cu", "conv2d/tensor_cores.cu", "conv2d/chunks.h"
DIRECT, DEPTHWISE, TURN = "conv2d/direct.cu", "conv2d/depthwise.cu", "conv2d/turn.h"
PACKS, WINDOWS = "pool2d/packs.cu", "pool2d/windows.h"
CONV, POOL, NORM = "conv2d/reference.cu", "pool2d/reference.cu", "batch_norm/welford.cu"
CLIP, PARTS = "clip.h", "batch_norm/parts.h"
WALK, PRODUCT, SUMS, EACH = (
    "conv2d/walk.h",
    "conv2d/gemm.h",
    "batch_norm/reference.cu",
    "each_value.h",
)


@dataclass(frozen=True)
class Mutant:
    """`old`, which stands once in the file, and `new` in its place; and what each tier says of it.

    Between « and » stands what is replaced, where it needs words around it to be found.
    "wrong": a value is not what float64 says;  "stopped": an error ends the launch, or the process;
    a kind of finding of the checker;  "traffic": more sectors or bank conflicts than without it;
    "lives": nothing;  "undefined": it may do anything, so that this tier is not asked.
    """

    file: str
    emu: str
    chk: str
    what: str
    old: str
    new: str

    def __str__(self):
        return f"{Path(self.file).stem}: {self.what}".replace(" ", "_")


# fmt: off
MUTANTS = [Mutant(*row) for row in (
    (GEMM, "wrong", "race", "waits for one group too few",
     "copy_async_wait<T::stages - 2>()", "copy_async_wait<T::stages - 1>()"),
    (GEMM, "wrong", "race", "no barrier after the wait",
     "__syncthreads();", ""),
    (GEMM, "wrong", "uninitialised", "loads into the stage being read",
     "loader.load((t + T::stages - 1) % T::stages)", "loader.load((t + T::stages) % T::stages)"),
    (GEMM, "wrong", "race", "multiplies the next stage",
     "multiply<T>(shared, t % T::stages, y, x, sum)", "multiply<T>(shared, (t + 1) % T::stages, y, x, sum)"),
    (GEMM, "undefined", "out of bounds", "reads one row of A too many",
     "a_exists && i * T::lanes < rows", "a_exists && i * T::lanes <= rows"),
    (GEMM, "undefined", "out of bounds", "reads B beyond the last term",
     "b_exists && inside(g, column[i], term)", "inside(g, column[i], term)"),
    (GEMM, "undefined", "out of bounds", "stores one column too many",
     "column >= g.N", "column > g.N"),
    (GEMM, "undefined", "out of bounds", "stores one row too many",
     "row >= g.M", "row > g.M"),
    (GEMM, "stopped", "stopped", "stores fours at every column",
     "o.store == Store::columns && j % 4", "false"),
    (GEMM, "wrong", "wrong", "the first channel's bias for all",
     "o.bias[channel]", "o.bias[0]"),
    (GEMM, "wrong", "wrong", "the second half of the rows too early",
     "&shared.a[stage][k][row + T::BM / 2]", "&shared.a[stage][k][row + T::BM / 4]"),
    (GEMM, "wrong", "wrong", "rows and columns exchanged",
     "fmaf(a[i], b[j], sum[i][j])", "fmaf(a[j], b[i], sum[i][j])"),
    (GEMM, "stopped", "stopped", "half the shared memory it uses",
     "sizeof(typename T::Shared)", "sizeof(typename T::Shared) / 2"),
    (CORES, "wrong", "race", "waits for one group too few",
     "copy_async_wait<stages - 2>()", "copy_async_wait<stages - 1>()"),
    (CORES, "wrong", "race", "no barrier after the wait",
     "«__syncthreads();»  // the step's", ""),
    (CORES, "wrong", "race", "no barrier before shared memory is used anew",
     "«__syncthreads();»  // all have read", ""),
    (CORES, "wrong", "race", "no barrier before the sums are stored",
     "«__syncthreads();»\n      store_channels<K>(g, o, shared, at);", ""),
    (CORES, "wrong", "race", "no barrier before pixels are stored",
     "«__syncthreads();»\n      store_pixels<K>(g, o, shared, at);", ""),
    (CORES, "wrong", "wrong", "quarters of A's fragment exchanged",
     "row + 16 * i, k, «true»", "false"),
    (CORES, "wrong", "wrong", "quarters of B's fragment exchanged",
     "column + 8 * j, k, «false»", "true"),
    (CORES, "wrong", "wrong", "the neighbour's fragment of B",
     "multiply_add(T(), sum[i][j], a[i], b[j])", "multiply_add(T(), sum[i][j], a[i], b[j ^ 1])"),
    (CORES, "undefined", "out of bounds", "stores a column of pixels too many",
     "if («column >= g.N») return", "column > g.N"),
    (CORES, "stopped", "stopped", "columns of a fragment overlap",
     "column + 8 * j + lane % 4 * 2", "column + 8 * j + lane % 4"),
    (CORES, "undefined", "out of bounds", "reads A beyond the last row",
     "a_exists && row < rows", "a_exists"),
    (CORES, "undefined", "out of bounds", "stores a chunk of rows too many",
     "at.row + row >= g.M", "at.row + row > g.M"),
    (CHUNKS, "lives", "traffic", "short lines are not swizzled",
     "c ^ (line >> 1 & 3)", "c"),
    (CHUNKS, "lives", "traffic", "long lines are swizzled by half",
     "c ^ ((line & 1) << 2 | (line & 2) | (line >> 2 & 1))", "c ^ (line >> 1 & 3)"),
    (CHUNKS, "wrong", "wrong", "floats of another term",
     "term + 4 * right + lane % 4", "term + 4 * right + lane / 8"),
    (TURN, "wrong", "race", "no barrier before the turned tile is read",
     "«__syncthreads();»\n    for (int i = y; i < turn_side; i += turn_rows) {\n      if (p + i", ""),
    (DIRECT, "wrong", "race", "no barrier before the next terms",
     "if (first) «__syncthreads();»", ""),
    (DIRECT, "wrong", "race", "no barrier before the terms are read",
     "«__syncthreads();»\n    for (int k = 0; k < count; k += V)", ""),
    (DIRECT, "undefined", "out of bounds", "reads weights beyond the last row",
     "«exists» ? read", "true"),
    (DIRECT, "undefined", "out of bounds", "stores one row too many",
     "if («at.row + r >= g.M») continue", "at.row + r > g.M"),
    (DIRECT, "wrong", "race", "no barrier before warps are added",
     "«__syncthreads();»\n  const int r = threadIdx.x / C", ""),
    (DIRECT, "wrong", "wrong", "the last warp is not added",
     "w < warps", "w < warps - 1"),
    (DIRECT, "wrong", "wrong", "the first term's weights for all that are read at once",
     "shared.a[k + v]", "shared.a[k]"),
    (DIRECT, "stopped", "uninitialised", "terms at once where channels are no multiple",
     "g.term[0].radix % V == 0", "true"),
    (DIRECT, "undefined", "out of bounds", "rows at once where there are not so many",
     "g.M % direct_rows == 0", "g.M % 4 == 0"),
    (CLIP, "wrong", "wrong", "ReLU drops NaN",
     "v < floor ? floor : v", "v > floor ? v : floor"),
    (CLIP, "wrong", "wrong", "the ceiling is left out",
     "v > ceiling ? ceiling : v", "v"),
    (DEPTHWISE, "undefined", "uninitialised", "no barrier before the terms are read",
     "«__syncthreads();»\n    if (group >= g.groups) continue", ""),
    (DEPTHWISE, "undefined", "out of bounds", "channels beyond the last group",
     "if («group >= g.groups») return", "group > g.groups"),
    (DEPTHWISE, "wrong", "race", "no barrier before pixels are added",
     "«__syncthreads();»\n  for (int j = threadIdx.x; j < C", ""),
    (DEPTHWISE, "wrong", "wrong", "the last pixel's sums are not added",
     "p < pixels", "p < pixels - 1"),
    (WALK, "wrong", "wrong", "the first digit's carry is lost",
     "digit[1]++", "digit[1]"),
    (WALK, "undefined", "out of bounds", "the last split goes beyond the terms",
     "end > g.K", "false"),
    (WALK, "wrong", "wrong", "splits leave out the remainder",
     "begin + (g.K + g.splits - 1) / g.splits", "begin + g.K / g.splits"),
    (WALK, "undefined", "out of bounds", "rows above the image exist",
     "unsigned(column.h + term.h) < unsigned(g.H)", "column.h + term.h < g.H"),
    (WALK, "wrong", "wrong", "the last part is not added",
     "s < splits", "s < splits - 1"),
    (WALK, "undefined", "out of bounds", "adds parts beyond the last weight",
     "i >= count", "false"),
    (PRODUCT, "wrong", "wrong", "a phase of the stride lacks a tap",
     "int(divide_up(kernel - tap, step))", "int((kernel - tap) / step)"),
    (PRODUCT, "undefined", "wrong", "dilation steps over taps",
     "int(dilation / common)", "int(dilation)"),
    (PRODUCT, "lives", "traffic", "the weight gradient reads along the slow axis",
     "g.a_by_term = g.b_by_term = s.layout == Layout::nchw", "g.a_by_term = g.b_by_term = s.layout != Layout::nchw"),
    (CONV, "wrong", "wrong", "dilation is left out",
     "top + kh * s.DH", "top + kh"),
    (CONV, "wrong", "wrong", "phases of the stride are mixed",
     "from_top % s.SH || oh >= s.OH", "oh >= s.OH"),
    (CONV, "undefined", "out of bounds", "one thread too many stores",
     "i >= s.N * s.OC * s.OH * s.OW", "i > s.N * s.OC * s.OH * s.OW"),
    (CONV, "wrong", "wrong", "sums over other groups",
     "oc < (g + 1) * s.oc_per_group()", "oc < s.OC"),
    (CONV, "wrong", "wrong", "the first group's channels for all",
     "k.n / s.oc_per_group() * s.ic_per_group() + k.c", "k.c"),
    (POOL, "wrong", "wrong", "the last of equal maxima",
     "v > best || v != v", "v >= best || v != v"),
    (POOL, "wrong", "wrong", "NaN does not propagate",
     "v > best || v != v", "v > best"),
    (POOL, "wrong", "wrong", "the index is of another plane",
     "indices[at] == p.h * s.w.in + p.w", "indices[at] == p.h * s.w.out + p.w"),
    (POOL, "wrong", "wrong", "one divisor for all windows",
     "s.divisor(o.h, o.w)", "s.divisor(1, 1)"),
    (WINDOWS, "wrong", "wrong", "the last window gives no gradient",
     "oh <= bottom", "oh < bottom"),
    (PACKS, "wrong", "wrong", "the last of equal maxima",
     "value > best[v]", "value >= best[v]"),
    (PACKS, "wrong", "wrong", "the index is of another plane",
     "int64_t(p.h) * at.IW + p.w", "int64_t(p.h) * at.OW + p.w"),
    (PACKS, "wrong", "wrong", "every second index of a pair is the first",
     "index[v + u]", "index[v]"),
    (PACKS, "wrong", "wrong", "the pixel's divisor, not the window's",
     "float(s.divisor(oh, ow))", "float(s.divisor(1, 1))"),
    (PACKS, "stopped", "stopped", "fours where channels are no multiple",
     "inner % V == 0", "inner % 2 == 0"),
    (POOL, "undefined", "out of bounds", "one plane too many",
     "plane >= s.N * s.C", "plane > s.N * s.C"),
    (EACH, "lives", "traffic", "neighbouring threads far apart",
     "int64_t(blockIdx.x) * each_threads + threadIdx.x", "int64_t(threadIdx.x) * gridDim.x + blockIdx.x"),
    (EACH, "stopped", "stopped", "the last block is not launched",
     "unsigned(divide_up(count, each_threads))", "unsigned(count / each_threads)"),
    (NORM, "wrong", "race", "no barrier before warps are merged",
     "shared.warp[warp] = mine[0];\n  «__syncthreads();»", ""),
    (NORM, "wrong", "wrong", "lanes in pairs are not merged",
     "delta > 0", "delta > 1"),
    (NORM, "wrong", "wrong", "means are merged with each other's weight",
     "mean += «deviation * (o.n / all)»;", "deviation * (n / all)"),
    (NORM, "wrong", "race", "every warp stores",
     "warp != 0 || c >= C", "c >= C"),
    (NORM, "undefined", "out of bounds", "the last part goes beyond the plane",
     "begin + length < packs ? begin + length : packs", "begin + length"),
    (NORM, "wrong", "wrong", "the variance is unbiased",
     "all.n > 0 ? all.m2 / all.n : 0", "all.n > 0 ? all.m2 / (all.n - 1) : 0"),
    (NORM, "wrong", "wrong", "the gradient through var is not shared",
     "through_var.v[j] * share", "through_var.v[j]"),
    (NORM, "wrong", "wrong", "zero lets a gradient pass",
     "v <= 0", "v < 0"),
    (NORM, "wrong", "wrong", "the ceiling lets a gradient pass",
     "v >= ceiling", "v > ceiling"),
    (NORM, "wrong", "wrong", "the residual is left out",
     "read(&added.v[j])", "0"),
    (NORM, "wrong", "wrong", "the residual's gradient is not masked",
     "write_pack(&dresidual[i], «gradients»)", "read_pack<V>(&upstream.dy[i])"),
    (NORM, "wrong", "wrong", "eight channels have the parameters of the first four",
     "&p[c + j]", "&p[c]"),
    (PARTS, "wrong", "wrong", "eights where channels are fours",
     "«neighbours % wide == 0» ? wide", "neighbours % 4 == 0"),
    (SUMS, "wrong", "wrong", "zero lets a gradient pass",
     "read(&y[at]) <= 0", "read(&y[at]) < 0"),
    (SUMS, "wrong", "wrong", "the residual's gradient is not masked",
     "write(&dresidual[at], «g»)", "read(&dy[at])"),
    (SUMS, "wrong", "race", "no barrier between two sums",
     "«__syncthreads();»  // before the next sum begins", ""),
    (SUMS, "wrong", "race", "no barrier between halves",
     "«__syncthreads();»\n    if (int(threadIdx.x)", ""),
    (SUMS, "wrong", "out of bounds", "the middle is added twice",
     "int(threadIdx.x) < half", "int(threadIdx.x) <= half"),
)]
# fmt: on


@dataclass(frozen=True)
class PtxMutant:
    """A mistake in what g++ never sees, seen in the kernels of the file `through`."""

    file: str
    through: str
    ptx: str
    what: str
    old: str
    new: str

    def __str__(self):
        return f"{Path(self.file).stem}: {self.what}".replace(" ", "_")


# fmt: off
PTX_MUTANTS = [PtxMutant("vocabulary.h", *row) for row in (
    (CORES, "wrong", "operands of mma exchanged",
     '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])', '"r"(a[1]), "r"(a[0]), "r"(a[2]), "r"(a[3])'),
    (CORES, "wrong", "mma of the other type",
     'PYCONV_MMA("m16n8k16", "bf16");', 'PYCONV_MMA("m16n8k16", "f16");'),
    (CORES, "stopped", "cp.async copies what is not wanted",
     '"r"(wanted ? 16 : 0)', '"r"(wanted ? 0 : 16)'),
    (GEMM, "stopped", "cp.async copies what does not exist",
     '"r"(wanted ? bytes : 0)', '"r"(bytes)'),
    (CORES, "wrong", "ldmatrix does not transpose",
     "m8n8.x4.trans.shared", "m8n8.x4.shared"),
    (CORES, "wrong", "bf16 is read one bit off",
     "uint32_t(p->bits) << 16", "uint32_t(p->bits) << 15"),
    (CORES, "wrong", "bf16 is rounded to f16",
     "cvt.rn.bf16.f32", "cvt.rn.f16.f32"),
    (GEMM, "stopped", "a launch without its shared memory",
     "kernel<<<grid, block, shared_bytes,", "kernel<<<grid, block, 0,"),
    (GEMM, "wrong", "grid and block exchanged",
     "kernel<<<grid, block,", "kernel<<<block, grid,"),
)]
# fmt: on


def changed(text, mutant):
    """`text` with the mutant's place as it says."""
    assert text.count(mutant.old) == 1, (
        f"{mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}"
    )
    return text.replace(mutant.old, mutant.new)


def plant(text, number, mutant):
    """`text` with the mutant's place asking pyconv_planted which of its two versions to be."""
    before, marked, rest = mutant.old.partition("«")
    old, _, after = rest.partition("»") if marked else (before, "", "")
    before = before if marked else ""
    place = before + old + after
    assert text.count(place) == 1, (
        f"{mutant.file}: {place!r} stands there {text.count(place)} times"
    )
    if old.endswith(";"):
        both = f"if (pyconv_planted == {number}) {{ {mutant.new} }} else {{ {old} }}"
    else:
        both = f"(pyconv_planted == {number} ? {mutant.new} : {old})"
    return text.replace(place, before + both + after)


def planted_sources(folder):
    """Copies what the emulator compiles into `folder`, with every mutant; returns the kernels.

    To the kernels the number is a constant, so that the checker does not watch it being read.
    """
    texts = {
        path.relative_to(build.sources()).as_posix(): path.read_text()
        for room in ("common", "cuda", "emulator")
        for path in (build.sources() / room).rglob("*.*")
    }
    for number, mutant in enumerate(MUTANTS, 1):
        texts[f"cuda/{mutant.file}"] = plant(texts[f"cuda/{mutant.file}"], number, mutant)
    texts["common/dtype.h"] += 'extern "C" const int pyconv_planted;\n'
    texts["cuda/planted.cu"] = (
        'extern "C" __attribute__((visibility("default"))) int pyconv_planted = 0;\n'
    )
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return sorted((folder / "cuda").rglob("*.cu"))


def table():
    """MUTANTS as docs/cuda.md shows them."""
    rows = ["| file | planted | emu | chk | ptx |", "|---|---|---|---|---|"]
    rows += [f"| `{m.file}` | {m.what} | {m.emu} | {m.chk} | |" for m in MUTANTS]
    rows += [f"| `{m.file}` | {m.what} | | | {m.ptx} |" for m in PTX_MUTANTS]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    docs = ROOT / "docs/cuda.md"
    before, marked, rest = docs.read_text().partition(MARK)
    docs.write_text(before + marked + table() + END + rest.partition(END)[2])
