"""Which kernel runs, why, and how far from the roof.

print(pyconv.explain(layer, x))                       # a layer of pyconv.nn or torch.nn
print(pyconv.explain(pyconv.ops.conv2d, x, w, padding=1, measure=True))
print(pyconv.explain(torch.nn.MaxPool2d(3, 2, 1), x))  # and of pooling and batch norm: _explain_memory
print(pyconv.explain(layer, x, device="cuda"))        # of CUDA's kernels, without a GPU: _explain_cuda

python -m pyconv explain --conv ic96ih56oc96kh7ph3g96 --batch 4 --measure
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyconv import _explain_cuda, _explain_memory, _shapes, ops
from pyconv._conv_string import Conv2dCase, conv2d
from pyconv._explain_kernels import NAMES, Candidate, Roof, kernels, line_of, roof
from pyconv._register import conv2d as _conv2d
from pyconv._shapes import pair, same_padding
from pyconv._timing import alternate

PASSES = ("fwd", "bwd_input", "bwd_weight")


@dataclass
class Pass:
    """One direction: who runs, who refused, and the bounds."""

    name: str
    chosen: str
    candidates: list[Candidate]
    bound: float  # seconds
    # Bytes of scratch memory that a call asks for, by kernel: the chosen one, and all that were measured.
    workspace: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=dict
    )  # measured, by kernel; "torch" is torch's


@dataclass
class Explanation:
    """What `explain` found; print it, or read its fields."""

    case: Conv2dCase
    dtype: torch.dtype
    channels_last: bool
    threads: int
    isa: str
    flops: int
    bytes: int
    roof: Roof
    passes: list[Pass]

    def __str__(self) -> str:
        lines = [
            _title(self.case),
            f"  on {NAMES[self.dtype]} {self.case.x} {'channels_last' if self.channels_last else 'NCHW'}, "
            f"{self.isa}, {self.threads} thread{'s' if self.threads > 1 else ''}",
            f"  {self.flops / 1e6:.1f} MFLOP, {self.bytes / 1e6:.2f} MB compulsory, "
            f"{self.flops / self.bytes:.1f} FLOP per byte; roof {self.roof.flops / 1e9:.0f} GFLOP/s, "
            f"{self.roof.bandwidth / 1e9:.0f} GB/s",
        ]
        for p in self.passes:
            bound = "arithmetic" if self.flops / self.roof.flops >= p.bound else "memory"
            lines.append(
                f"{p.name}: {p.chosen} runs with {_size(p.workspace[p.chosen])} of workspace; "
                f"at best {p.bound * 1e6:.1f} us, bound by {bound}"
            )
            for k in p.candidates:
                why = k.cannot or k.refuses
                lines.append(f"    {k.name:<23} {why or 'can run here'}  [{k.where}]")
            for name, seconds in sorted(p.seconds.items(), key=lambda item: item[1]):
                lines.append(
                    f"    {name:<23} {seconds * 1e6:10.1f} us  {self.flops / seconds / 1e9:7.1f} GFLOP/s  "
                    f"{p.bound / seconds:5.0%} of the roof"
                    + (f"  workspace {_size(p.workspace[name])}" if name in p.workspace else "")
                )
        return "\n".join(lines)


def _title(c: Conv2dCase) -> str:
    return (
        f"conv2d {c.ic} -> {c.oc}, {c.kh}x{c.kw}, stride {(c.sh, c.sw)}, padding {(c.ph, c.pw)}, "
        f"dilation {(c.dh, c.dw)}, groups {c.g}"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def explain(
    layer_or_op: Any,
    *inputs: Tensor,
    measure: bool = False,
    device: str | None = None,
    **arguments: Any,
) -> Any:
    """Explains a layer: the kernel chosen in each direction and why, and every kernel refused.

    Args:
        layer_or_op: a convolution, pooling or batch-norm layer (pyconv's or torch's), or such an
            operator of pyconv.ops.
        inputs: the layer's input, or the operator's tensors.
        measure: also time every kernel that can run, and torch, interleaved.
        device: "cpu" or "cuda", whose kernels to ask; None for where the call would run: CUDA's for
            CUDA tensors and inside pyconv.cuda_emulator(). No GPU is needed to ask.
        arguments: the operator's other arguments, as for the call.

    Returns:
        an `Explanation`; `print` shows it. Of CUDA's kernels it has, instead of what a measured roof
        allows, the launches: grid, block, shared memory, tiling, and where nvcc built them here
        registers, spills and occupancy of each GPU. Of a convolution it has operations and bytes, of pooling
        and batch norm the bytes that each direction must move, and the share of the bandwidth of a
        copy that moves as many.

    Raises:
        TypeError: none of these.
        ShapeError: the sizes do not fit, as the call itself would say.
        ValueError: there is no such device; or measure is asked of CUDA's kernels.
        RuntimeError: the compiled half is missing.
    """
    if _explain_memory.operator_of(layer_or_op):
        return _explain_memory.explain(
            layer_or_op, *inputs, measure=measure, device=device, **arguments
        )
    if isinstance(layer_or_op, torch.nn.Conv2d):
        layer = layer_or_op
        padding: Any = layer.padding if layer.padding_mode == "zeros" else 0
        x, w = inputs[0], layer.weight
        if layer.padding_mode != "zeros":
            x = torch.nn.functional.pad(
                x, layer._reversed_padding_repeated_twice, layer.padding_mode
            )
        arguments = {
            "stride": layer.stride,
            "padding": padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
        }
    elif layer_or_op is ops.conv2d:
        x, w = inputs[:2]
    else:
        raise TypeError(
            "explain: expected a Conv2d, pooling or batch-norm layer, or such an operator of"
            f" pyconv.ops, got {layer_or_op!r}"
        )
    x = x.unsqueeze(0) if x.dim() == 3 else x
    case = _case(x, w, **arguments)
    formats = (x, w)
    last = any(
        t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
        for t in formats
    )
    if _explain_cuda.wanted(device, x):
        return explain_case_on_cuda(case, x.dtype, last, measure)
    return explain_case(case, x.dtype, last, measure)


def _case(
    x: Tensor,
    w: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **_rest: Any,
) -> Conv2dCase:
    dilation = pair("explain", "dilation", dilation)
    if padding == "same":
        left, _right, top, _bottom = same_padding((w.shape[2], w.shape[3]), dilation)
        padding = (top, left)
    padding = (0, 0) if padding == "valid" else pair("explain", "padding", padding)
    stride = pair("explain", "stride", stride)
    n, ic, ih, iw = x.shape
    oc, _, kh, kw = w.shape
    _shapes.conv2d(x.shape, w.shape, stride, padding, dilation, groups)
    return Conv2dCase(n, groups, ic, ih, iw, oc, kh, kw, *stride, *padding, *dilation)


def explain_case(
    case: Conv2dCase,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    measure: bool = False,
) -> Explanation:
    """As `explain`, for a convolution given as data, on the CPU."""
    lib, shape = kernels(), shape_of(case, dtype, channels_last)
    threads = torch.get_num_threads()
    machine = roof(dtype, threads, -(-shape.bytes // 2**20))
    passes = []
    for name in PASSES:
        candidates = [
            Candidate(kernel, source, cannot, refuses, line_of(source, name))
            for kernel, source, cannot, refuses in lib.ask(shape, name)
        ]
        chosen = next(k.name for k in candidates if not k.refuses)
        passes.append(Pass(name, chosen, candidates, machine.seconds(shape.flops, shape.bytes)))
        passes[-1].workspace[chosen] = workspace(case, dtype, channels_last, name)
    found = Explanation(
        case,
        dtype,
        channels_last,
        threads,
        lib.isa(),
        shape.flops,
        shape.bytes,
        machine,
        passes,
    )
    if measure:
        for p in found.passes:
            able = [k.name for k in p.candidates if not k.cannot]
            calls = {
                name: candidate_call(case, dtype, channels_last, p.name, name)
                for name in (*able, "torch")
            }
            p.seconds = {name: t.median for name, t in alternate(calls, seconds=0.2).items()}
            for name in able:
                p.workspace[name] = workspace(case, dtype, channels_last, p.name, name)
    return found


def explain_case_on_cuda(
    case: Conv2dCase, dtype: torch.dtype, channels_last: bool, measure: bool = False
) -> _explain_cuda.CudaExplanation:
    """As `explain_case`, of CUDA's kernels."""
    shape = shape_of(case, dtype, channels_last)
    return _explain_cuda.explain(
        f"{_title(case)}, of {case.x}",
        dtype,
        channels_last,
        {name: f"conv2d_{{}}_{name}" for name in PASSES},
        "",
        (shape,),
        lambda _: shape.bytes,
        shape.flops,
        measure=measure,
    )


def shape_of(case: Conv2dCase, dtype: torch.dtype, channels_last: bool) -> Any:
    """The case as the lists of kernels take it."""
    _, _, oh, ow = case.y
    return kernels().Conv2dShape(
        N=case.mb, G=case.g, IC=case.ic, IH=case.ih, IW=case.iw, OC=case.oc, KH=case.kh, KW=case.kw,
        OH=oh, OW=ow, SH=case.sh, SW=case.sw, PH=case.ph, PW=case.pw, DH=case.dh, DW=case.dw,
        dtype=NAMES[dtype], channels_last=channels_last,
    )  # fmt: skip


def workspace(
    case: Conv2dCase, dtype: torch.dtype, channels_last: bool, direction: str, kernel: str = ""
) -> int:
    """Bytes of scratch memory that all threads of one call ask for, found by calling.

    Threads keep their scratch for the next call: a process holds the most that any call asked for.
    """
    call = candidate_call(case, dtype, channels_last, direction, kernel)
    kernels().scratch_asked()  # forgets what was asked for before
    call()
    return kernels().scratch_asked()


def operands(
    case: Conv2dCase, dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Random x, w and dy of the case, in one layout."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, w, dy = (
        torch.randn(size).to(dtype).to(memory_format=layout) for size in (case.x, case.w, case.y)
    )
    return x, w, dy


def candidate_call(
    case: Conv2dCase, dtype: torch.dtype, channels_last: bool, direction: str, kernel: str
) -> Callable[[], Tensor]:
    """One direction of a convolution by one kernel, "" for the list's choice or "torch" for torch's."""
    x, w, dy = operands(case, dtype, channels_last)
    if kernel == "torch":
        return torch_call(case, x, w, dy, direction)
    return our_call(case, x, w, dy, direction, channels_last, kernel)


def our_call(
    case: Conv2dCase,
    x: Tensor,
    w: Tensor,
    dy: Tensor,
    direction: str,
    channels_last: bool,
    kernel: str = "",
) -> Callable[[], Tensor]:
    """One direction of a convolution of these operands by one kernel, "" for the list's choice."""
    if direction == "fwd":
        return lambda: _conv2d.fwd(x, w, None, *case.geometry, kernel)
    rest = (*case.geometry, channels_last, kernel)
    if direction == "bwd_input":
        return lambda: _conv2d.bwd_input(dy, w, case.ih, case.iw, *rest)
    return lambda: _conv2d.bwd_weight(dy, x, case.kh, case.kw, *rest)


def torch_call(
    case: Conv2dCase, x: Tensor, w: Tensor, dy: Tensor, direction: str
) -> Callable[[], Tensor]:
    forward = getattr(torch.nn.functional, "conv2d")  # noqa: B009  the judge, by name: see test_layering
    backward = getattr(torch.ops.aten, "convolution_" + "backward")
    if direction == "fwd":
        return lambda: forward(x, w, None, **case.arguments)
    mask = [direction == "bwd_input", direction == "bwd_weight", False]
    rest = ([case.sh, case.sw], [case.ph, case.pw], [case.dh, case.dw], False, [0, 0], case.g, mask)
    index = mask.index(True)
    return lambda: backward(dy, x, w, None, *rest)[index]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``explain``."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--conv", required=True, help="a convolution, as ic96ih56oc96kh7ph3g96")
    parser.add_argument("--batch", type=int, help="overrides mb")
    parser.add_argument("--dtype", choices=list(NAMES.values()), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--measure", action="store_true", help="time every kernel and torch")
    parser.add_argument(
        "--device",
        choices=_explain_cuda.DEVICES,
        default="cpu",
        help="whose kernels; no GPU is needed to ask of CUDA's",
    )
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    """Print; return the exit code."""
    case = conv2d(args.conv)
    if args.batch:
        case = case.with_batch(args.batch)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and args.measure:
        sys.stderr.write(f"pyconv {_explain_cuda.UNMEASURED}\n")
        return 2
    explained = explain_case_on_cuda if args.device == "cuda" else explain_case
    found = explained(case, getattr(torch, args.dtype), args.channels_last, args.measure)
    sys.stdout.write(f"{found}\n")
    return 0
