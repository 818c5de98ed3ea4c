"""Every CUDA kernel, data type, layout and direction that there is, as data: what the tiers run and docs/cuda.md shows.

python -m tests.cuda_table    writes the table of docs/cuda.md
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from pyconv import _launches, _native, ops
from pyconv._conv_string import conv2d
from pyconv._explain import PASSES, shape_of
from tests.helpers import DTYPES, LAYOUTS, integers, random

DOCS = Path(__file__).parents[1] / "docs/cuda.md"
MARK, END = "<!-- kernels -->\n", "<!-- end kernels -->\n"
TIERS = ("emu", "chk", "ptx", "sass")
# Of each convolution kernel one case that it takes, small, with tails in rows and in columns.
CONV2D = {
    "tensor_cores": "mb1ic16ih5iw4oc24kh3ph1",
    "depthwise": "mb1ic24ih5iw4oc24kh3ph1g24",
    "direct": "mb1ic8ih5iw4oc9kh3ph1",
    "implicit_gemm": "mb1ic5ih5iw4oc9kh3ph1",
    "reference": "mb1ic4ih4iw3oc4kh3ph1g2",
}
POOLS = ("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "max_unpool2d")
NORMS = ("batch_norm", "batch_norm_relu")


@dataclass(frozen=True)
class Row:
    """One kernel of one operator's list, on one data type in one layout; all of its directions."""

    op: str
    kernel: str
    dtype: torch.dtype
    channels_last: bool

    def __str__(self):
        layout = "NHWC" if self.channels_last else "NCHW"
        return f"{self.op}-{self.kernel}-{str(self.dtype)[6:]}-{layout}"

    @property
    def layout(self):
        return LAYOUTS[self.channels_last]

    @property
    def passes(self):
        """The directions that the list says it can run; TF32 allowed."""
        allowed, lib = _native.lib.allow_tf32(), _native.lib
        lib.set_allow_tf32(True)
        try:
            return [p for p in self._names() if not self._answer(p)[2]]
        finally:
            lib.set_allow_tf32(allowed)

    def launches(self):
        """Of all directions."""
        for name in self.passes:
            suffix, shape, direction = self._question(name)
            source = self._answer(name)[1]
            yield from _launches.launches(
                f"launches{suffix}", self.kernel, source, *shape, direction
            )

    def _names(self):
        if self.op == "conv2d":
            return PASSES
        return ("train", "eval", "bwd") if self.op in NORMS else ("fwd", "bwd")

    def _answer(self, name):
        """(name, source, why it cannot, why it is not chosen) of this kernel in the operator's list."""
        suffix, shape, direction = self._question(name)
        answers = getattr(_native.lib, f"ask_cuda{suffix}")(*shape, direction)
        return next(answer for answer in answers if answer[0] == self.kernel)

    def _question(self, name):
        """What pyconv._C's functions are called, their shape, and the direction."""
        dtype = str(self.dtype)[6:]
        if self.op == "conv2d":
            case = conv2d(CONV2D[self.kernel])
            return "", (shape_of(case, self.dtype, self.channels_last),), name
        direction = "bwd_input" if name == "bwd" else "fwd"
        if self.op in NORMS:
            shape = (2, 8, 3, 4, dtype, self.channels_last, name != "eval")
            return "_batch_norm", shape, direction
        family = "unpool" if "unpool" in self.op else "max" if "max" in self.op else "avg"
        axis = (4, 2, 2, 2, 0, 1)
        return "_pool2d", (family, 2, 8, axis, axis, dtype, self.channels_last), direction

    def work(self):
        """(what the kernels compute, what torch does in float64), all directions."""
        torch.manual_seed(0)
        make = self._convolution if self.op == "conv2d" else self._normalisation
        return (self._pooling if self.op in POOLS else make)()

    def _judged(self, ours, theirs, inputs, upstream):
        """ours(*inputs) and its gradients, beside those of theirs on float64 copies."""
        copies = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
        right = theirs(*copies)
        wanted = [t for t in copies if t.requires_grad]
        right = [right, *torch.autograd.grad(right, wanted, upstream.double())]

        def run():
            y = ours(*inputs)
            return [y, *torch.autograd.grad(y, [t for t in inputs if t.requires_grad], upstream)]

        return run, [t.detach() for t in right]

    def _convolution(self):
        case = conv2d(CONV2D[self.kernel])
        # TF32 has small integers; other sums are judged with a tolerance.
        exact = self.kernel == "tensor_cores" and self.dtype == torch.float32
        draw = integers if exact else random
        like = {"dtype": self.dtype, "layout": self.layout}
        inputs = [draw(*case.x, grad=True, **like), draw(*case.w, grad=True, **like)]
        arguments = case.arguments
        return self._judged(
            lambda x, w: ops.conv2d(x, w, **arguments, algorithm=self.kernel),
            lambda x, w: F.conv2d(x, w, **arguments),
            inputs,
            draw(*case.y, **like),
        )

    def _pooling(self):
        size = (2, 8, 3, 2) if self.op == "max_unpool2d" else (2, 8, 6, 5)
        x = random(*size, dtype=self.dtype, layout=self.layout, grad=True)
        arguments = {"max_pool2d": (3, 2, 1), "avg_pool2d": (3, 2, 1)}.get(self.op, ((3, 2),))
        if self.op == "max_unpool2d":
            _, indices = F.max_pool2d(random(2, 8, 6, 4), 2, return_indices=True)
            arguments = (indices, 2)
        mine, theirs = getattr(ops, self.op), getattr(F, self.op)
        return self._judged(
            lambda x: mine(x, *arguments, algorithm=self.kernel),
            lambda x: theirs(x, *arguments),
            [x],
            random(*theirs(x.detach(), *arguments).shape, dtype=self.dtype, layout=self.layout),
        )

    def _normalisation(self):
        """Of a batch, then with given statistics: the gradients of both."""
        like, keep = {"dtype": self.dtype, "layout": self.layout}, self.dtype
        keep = keep if keep == torch.float64 else torch.float32
        x, z = (random(2, 8, 3, 4, grad=True, **like) for _ in range(2))
        w, b = (random(8, dtype=keep, grad=True) for _ in range(2))
        mean, var = random(8, dtype=keep), torch.rand(8, dtype=keep) + 0.5
        relu = self.op == "batch_norm_relu"
        operator, more = getattr(ops, self.op), {"algorithm": self.kernel}
        both = []
        for training in (True, False):

            def ours(x, z, w, b, training=training):
                act = {**more, **({"residual": z, "ceiling": 1.5} if relu else {})}
                return operator(
                    x, *(None, None) if training else (mean, var), w, b, training, **act
                )

            def before(x, z, w, b, training=training):
                given = (None, None) if training else (mean.double(), var.double())
                return F.batch_norm(x, *given, w, b, training) + (z if relu else 0)

            def theirs(*inputs, before=before):
                return F.hardtanh(before(*inputs), 0.0, 1.5) if relu else before(*inputs)

            upstream, inputs = random(2, 8, 3, 4, **like), [x, z if relu else z.detach(), w, b]
            if relu:  # where rounding may decide on which side of a bound a value falls, nothing comes from above
                kinks = before(*(t.detach().double() for t in inputs))
                upstream[(kinks.abs() < 0.05) | ((kinks - 1.5).abs() < 0.05)] = 0
            both.append(self._judged(ours, theirs, inputs, upstream))
        return lambda: [t for run, _ in both for t in run()], [
            t for _, right in both for t in right
        ]


def rows():
    """All that exist; none where the compiled half is missing."""
    found = []
    for op in ("conv2d", *POOLS, *NORMS) if _native.lib else ():
        for kernel in _native.lib.cuda_algorithms[op.removesuffix("_relu")]:
            found += [Row(op, kernel, d, last) for d in DTYPES for last in (False, True)]
    return [row for row in found if row.passes]


def is_right(result, right):
    """What is rounded once, from sums in float32 or, of float64, in that."""
    if not result.is_floating_point():
        return torch.equal(result, right)
    wide = result.dtype == torch.float64
    allowed = torch.finfo(result.dtype).eps * right.abs() + (1e-12 if wide else 5e-5)
    return result.shape == right.shape and bool(((result.double() - right).abs() <= allowed).all())


def table():
    """rows() as docs/cuda.md shows them: a line for each operator and kernel."""
    lines = [
        "| op | kernel | directions | data types | layouts | passes |",
        "|---|---|---|---|---|---|",
    ]
    grouped = {}
    for row in rows():
        grouped.setdefault((row.op, row.kernel), []).append(row)
    for (op, kernel), found in grouped.items():
        by_type = {}
        for row in found:
            by_type.setdefault(row.dtype, []).append(
                "channels_last" if row.channels_last else "NCHW"
            )
        layouts = {tuple(v) for v in by_type.values()}
        assert len(layouts) == 1, (op, kernel, by_type)
        passes = {tuple(row.passes) for row in found}
        assert len(passes) == 1, (op, kernel, passes)
        names = ", ".join("TF32" if tf32(kernel, d) else str(d)[6:] for d in by_type)
        lines.append(
            f"| {op} | `{kernel}` | {', '.join(*passes)} | {names} | {', '.join(*layouts)} |"
            f" {', '.join(TIERS)} |"
        )
    return "\n".join(lines) + f"\n\n{len(rows())} combinations of kernel, data type and layout.\n"


def tf32(kernel, dtype):
    return kernel == "tensor_cores" and dtype == torch.float32


if __name__ == "__main__":
    before, marked, rest = DOCS.read_text().partition(MARK)
    DOCS.write_text(before + marked + table() + END + rest.partition(END)[2])
