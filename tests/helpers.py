"""The only tolerance of the suite, and the tensors it is asked of."""

import re

import torch
import torch.nn.functional as F

from tests.cases import winograd_taps

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

_EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}
_SUM_EPS = {
    dtype: _EPS[torch.float64 if dtype == torch.float64 else torch.float32] for dtype in DTYPES
}


def random(*size, dtype=torch.float32, layout=torch.contiguous_format, grad=False):
    tensor = torch.randn(*size).to(dtype)
    if len(size) == 4:
        tensor = tensor.to(memory_format=layout)
    return tensor.requires_grad_(grad)


def integers(*size, dtype=torch.float32, layout=torch.contiguous_format, grad=False):
    """Small integers: their sums of products stay below 2^24, so float32 must give them exactly."""
    tensor = torch.randint(-4, 5, size).to(dtype)
    if len(size) == 4:
        tensor = tensor.to(memory_format=layout)
    return tensor.requires_grad_(grad)


def in_float64(*tensors):
    """Copies for the judge: same values, float64, gradients of their own."""
    return tuple(
        t if t is None else t.detach().double().clone().requires_grad_(t.requires_grad)
        for t in tensors
    )


def runs_or_refuses(call):
    """What call() returns, or None if the algorithm it forces refuses: then with a sentence."""
    try:
        return call()
    except ValueError as error:
        why = str(error)
    assert re.search(r'algorithm "\w+" cannot run \w+ here: \w+ .*\w', why), why
    return None


def winograd_amplification(case):
    """By how much the transforms of a case enlarge rounding errors, beside a direct sum's.

    Chosen so that the cases of the suite pass; not the a-priori bound |AT| |G| |BT|.
    """
    return 4 if max(winograd_taps(case)) <= 3 else 16


def winograd_magnitude(magnitude, case, gradient=False):
    """The scale of Winograd's rounding errors: what is largest in a tile errs everywhere in it.

    A tile has 5 pixels along an axis of 2 or 4 taps, 4 of 3 or 5, 2 of 7; a dilation apart, and as
    the input's gradient a stride, pixels between them included.
    """
    if not magnitude.numel():
        return magnitude
    steps = [{1: 0, 2: 4, 4: 4, 7: 1}.get(taps, 3) for taps in winograd_taps(case)]
    stride = (case.sh, case.sw) if gradient else (1, 1)
    reach = [(n + 1) * s - 1 if n else 0 for n, s in zip(steps, stride)]
    dilation = (case.dh, case.dw)
    h, w = (r * d for r, d in zip(reach, dilation))
    around = F.pad(magnitude, (w, w, h, h))
    largest = F.max_pool2d(around, [2 * r + 1 for r in reach], stride=1, dilation=dilation)
    return winograd_amplification(case) * largest


def assert_close(actual, expected, *, magnitude=None, terms=1, name="result"):
    """`actual` is the float64 `expected` up to the rounding of its own sums.

    A sum of `terms` products in arithmetic of unit eps errs by about eps * sqrt(terms) times the
    sum of the products' absolute values (`magnitude`, default |expected|), then is rounded once to
    actual's dtype (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2 and 4.5).
    """
    assert expected.dtype == torch.float64
    assert actual.shape == expected.shape, (
        f"{name}: shape {actual.shape}, expected {expected.shape}"
    )
    size = expected.abs() if magnitude is None else magnitude
    allowed = (
        4 * _SUM_EPS[actual.dtype] * max(terms, 1) ** 0.5 * size
        + _EPS[actual.dtype] * expected.abs()
    )
    tiny = torch.finfo(actual.dtype).smallest_normal
    error = (actual.double() - expected).abs()
    worst = (error - allowed - tiny).max().item() if error.numel() else 0.0
    assert worst <= 0, f"{name}: error exceeds the bound by {worst:.3e} ({actual.dtype})"
