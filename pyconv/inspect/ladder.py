"""From plain loops to the fastest kernel: what each adds, and what that gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pyconv._conv_string import Conv2dCase, conv2d
from pyconv._explain import candidate_call, explain_case, torch_call
from pyconv._register import conv2d as _conv2d
from pyconv._timing import alternate
from pyconv.inspect._extras import Shown, axes, text_table

IDEAS = {
    "reference": "the formula as seven loops, one product at a time",
    "direct_planes": "vectors of pixels: one weight meets a whole row of them, sums stay in registers",
    "direct_channels": "vectors of output channels: one pixel meets many weights, no border in the way",
    "depthwise_planes": "a channel is alone: vectors of pixels, each weight loaded once for a plane",
    "depthwise_channels": "a channel is alone: vectors of channels, which lie side by side in channels_last",
    "implicit_gemm": "one matrix product with im2col's matrix, which is never made: blocks for the caches",
    "winograd": "fewer products: tiles are transformed, so that a 3x3 kernel needs 2.25 instead of 9",
}


@dataclass
class Rung:
    """One kernel on the ladder."""

    kernel: str
    idea: str
    seconds: float
    gflops: float
    share: float  # of the roofline
    error: float  # max |y - y64| / max |y64|
    chosen: bool


@dataclass
class Ladder(Shown):
    """What `ladder` found, slowest first; `torch` is torch's own, beside it."""

    case: Conv2dCase
    direction: str
    rungs: list[Rung]
    torch: Rung
    roof: float  # GFLOP/s that the roofline allows

    @property
    def title(self) -> str:
        c = self.case
        text = f"conv2d {self.direction}: image {'x'.join(map(str, c.x))}, weight {'x'.join(map(str, c.w))}"
        for name, value, plain in (("stride", (c.sh, c.sw), 1), ("padding", (c.ph, c.pw), 0),
                                   ("dilation", (c.dh, c.dw), 1)):  # fmt: skip
            text += f", {name} {value[0]}x{value[1]}" * (value != (plain, plain))
        return text + f", groups {c.g}" * (c.g > 1)

    def __str__(self) -> str:
        head = ["kernel", "time", "GFLOP/s", "of roof", "times the loops", "idea"]
        loops = self.rungs[0].seconds
        rows = [
            [r.kernel + " *" * r.chosen, f"{r.seconds * 1e6:.1f} us", f"{r.gflops:.1f}", f"{r.share:.0%}",
             f"{loops / r.seconds:.1f}", r.idea]
            for r in [*self.rungs, self.torch]
        ]  # fmt: skip
        return f"{self.title}; * is what runs\n{text_table(head, rows)}"

    def plot(self, ax: Any = None) -> Any:
        """A bar for each kernel, on a logarithmic scale, with its idea; the roofline as a line; returns the axes."""
        rungs = [*self.rungs, self.torch]
        ax = axes(ax, figsize=(9, 0.8 + 0.62 * len(rungs)))
        colors = ["tab:orange" if r.chosen else "tab:blue" for r in self.rungs]
        ax.barh([r.kernel for r in rungs], [r.gflops for r in rungs], 0.4, color=[*colors, "0.6"])
        low, high = min(r.gflops for r in rungs) / 2, max(self.roof, *(r.gflops for r in rungs))
        for i, rung in enumerate(rungs):
            ax.annotate(f"{rung.gflops:.3g}", (rung.gflops, i), (4, 0), va="center", fontsize=8,
                        textcoords="offset points")  # fmt: skip
            ax.annotate(rung.idea, (low, i + 0.24), (3, 0), va="top", fontsize=7.5, color="0.3",
                        textcoords="offset points")  # fmt: skip
        ax.axvline(self.roof, color="0.4", linestyle="--", zorder=0)
        ax.annotate("roofline", (self.roof, 0.99), (-2, 0), xycoords=ax.get_xaxis_transform(), va="top",
                    textcoords="offset points", rotation=90, ha="right", fontsize=8, color="0.4")  # fmt: skip
        ax.set_ylim(len(rungs) - 0.4, -0.5)
        ax.set(xscale="log", xlim=(low, 2 * high), xlabel="GFLOP/s, logarithmic", title=self.title)
        ax.title.set_fontsize(9)
        return ax


def ladder(
    op: str,
    shape: str | Conv2dCase,
    direction: str = "fwd",
    channels_last: bool = False,
    dtype: torch.dtype = torch.float32,
    seconds: float = 0.2,
) -> Ladder:
    """Times every kernel that can run a convolution, from plain loops to the fastest.

    Each is checked against the plain loops in float64 before it is believed. FLOP are those of the
    formula, so that Winograd, which needs fewer, may pass the roofline.

    Args:
        op: "conv2d".
        shape: a convolution as text, "mb1ic64ih56oc64kh3ph1" (`python -m pyconv explain --help`).
        direction: fwd, bwd_input or bwd_weight.

    Raises:
        ValueError: another operator or direction.
        RuntimeError: the compiled half is missing, or a kernel gave a wrong result.

    >>> from pyconv import inspect
    >>> found = inspect.ladder("conv2d", "ic8ih14oc8kh3ph1", seconds=0.01)
    >>> found.rungs[0].kernel
    'reference'
    >>> any(rung.chosen for rung in found.rungs)
    True
    """
    if op != "conv2d":
        raise ValueError(f"ladder: op must be 'conv2d', got {op!r}")
    if direction not in ("fwd", "bwd_input", "bwd_weight"):
        raise ValueError(
            f"ladder: direction must be fwd, bwd_input or bwd_weight, got {direction!r}"
        )
    case = conv2d(shape) if isinstance(shape, str) else shape
    found = explain_case(case, dtype, channels_last)
    the_pass = next(p for p in found.passes if p.name == direction)
    able = [k.name for k in the_pass.candidates if not k.cannot]
    errors = _errors(case, dtype, channels_last, direction, [*able, "torch"])
    calls = {
        name: candidate_call(case, dtype, channels_last, direction, name)
        for name in (*able, "torch")
    }
    times = alternate(calls, seconds)

    def rung(name: str) -> Rung:
        time = times[name].median
        idea = IDEAS.get(name, "") if name != "torch" else "torch's own, for comparison"
        chosen = name == the_pass.chosen
        return Rung(
            name, idea, time, found.flops / time / 1e9, the_pass.bound / time, errors[name], chosen
        )

    rungs = sorted(map(rung, able), key=lambda r: (r.kernel != "reference", -r.seconds))
    return Ladder(case, direction, rungs, rung("torch"), found.flops / the_pass.bound / 1e9)


def _errors(
    case: Conv2dCase, dtype: torch.dtype, last: bool, direction: str, kernels: list[str]
) -> dict[str, float]:
    """Of every kernel on the same operands, beside the plain loops in float64."""
    layout = torch.channels_last if last else torch.contiguous_format
    operands = [torch.randn(s).to(dtype).to(memory_format=layout) for s in (case.x, case.w, case.y)]
    exact = _run(case, [t.double() for t in operands], last, direction, "reference")
    errors = {}
    for kernel in kernels:
        found = _run(case, operands, last, direction, kernel).double()
        errors[kernel] = float((found - exact).abs().max() / exact.abs().max().clamp_min(1e-300))
        # Winograd's transforms enlarge rounding, which the half types have only at the store.
        steps = 1024 if dtype in (torch.float64, torch.float32) else 4
        if not errors[kernel] <= steps * torch.finfo(dtype).eps:
            raise RuntimeError(
                f"ladder: {kernel} is wrong by {errors[kernel]:.2g} of the largest value"
            )
    return errors


def _run(case: Conv2dCase, operands: Any, last: bool, direction: str, kernel: str) -> torch.Tensor:
    x, w, dy = operands
    if kernel == "torch":
        return torch_call(case, x, w, dy, direction)()
    rest = (*case.geometry, last, kernel)
    if direction == "fwd":
        return _conv2d.fwd(x, w, None, *case.geometry, kernel)
    if direction == "bwd_input":
        return _conv2d.bwd_input(dy, w, case.ih, case.iw, *rest)
    return _conv2d.bwd_weight(dy, x, case.kh, case.kw, *rest)
