"""What the tuned CUDA kernels ask of memory, beside recorded figures; and that the checker finds nothing in them."""

import pytest
import torch

import pyconv
from pyconv import _native, ops
from pyconv._conv_string import conv2d
from tests.helpers import LAYOUTS, random

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)

# Sectors of global memory and passes over shared memory that each kernel needs, over the fewest that could
# move its bytes; recorded from cases of whole tiles. Losing one is a regression. What direct and tensor_cores
# have above 1: rows of pixels that begin inside a sector; three channels of channels_last, taken one by one
# from L1; 16 bytes of 32 a pixel has there, the other 16 in the next request; the weight gradient, of taps in
# channels_last, stored in NCHW.
WIDE, FEW, DEPTHWISE = "mb2ic64ih8oc64kh3ph1", "mb2ic3ih16oc8kh3ph1", "mb2ic64ih8oc64kh3ph1g64"
RECORDED = [
    ("tensor_cores", torch.float32, LAYOUTS[0], WIDE, 1.38, 1.0),
    ("tensor_cores", torch.float32, LAYOUTS[1], WIDE, 1.0, 1.0),
    ("tensor_cores", torch.bfloat16, LAYOUTS[0], WIDE, 1.47, 1.0),
    ("tensor_cores", torch.bfloat16, LAYOUTS[1], WIDE, 1.0, 1.03),
    ("depthwise", torch.float32, LAYOUTS[1], DEPTHWISE, 1.02, 1.04),
    ("depthwise", torch.bfloat16, LAYOUTS[1], DEPTHWISE, 1.05, 1.04),
    ("direct", torch.float32, LAYOUTS[0], FEW, 1.35, 1.06),
    ("direct", torch.float32, LAYOUTS[1], FEW, 2.3, 1.08),
    ("direct", torch.bfloat16, LAYOUTS[1], FEW, 1.75, 1.08),
    ("direct", torch.bfloat16, LAYOUTS[0], DEPTHWISE, 1.29, 1.02),
    ("implicit_gemm", torch.float32, LAYOUTS[0], WIDE, 1.265, 1.04),
    ("implicit_gemm", torch.float32, LAYOUTS[1], WIDE, 1.0, 1.06),
]


@pytest.mark.parametrize(
    ("algorithm", "dtype", "layout", "text", "most_global", "most_shared"), RECORDED
)
def test_traffic_is_as_recorded(
    algorithm, dtype, layout, text, most_global, most_shared, monkeypatch
):
    monkeypatch.setattr(pyconv.backends.cuda, "allow_tf32", True)
    case = conv2d(text)
    x, w = (random(*size, dtype=dtype, layout=layout, grad=True) for size in (case.x, case.w))
    with pyconv.cuda_emulator(check=True) as report:
        y = ops.conv2d(x, w, **case.arguments, algorithm=algorithm)
        y.backward(random(*y.shape, dtype=dtype, layout=layout))
    assert report.errors == []
    for memory, most in (("global", most_global), ("shared", most_shared)):
        rows = [t for t in report.traffic if t.memory == memory]
        excess = sum(t.cost for t in rows) / sum(t.least for t in rows)
        assert excess <= most, f"{memory}: {excess:.3f}\n{report}"


@pytest.mark.parametrize(
    ("dtype", "layout", "most"),
    [(torch.float32, LAYOUTS[1], 1.28), (torch.bfloat16, LAYOUTS[1], 1.43), (torch.float32, LAYOUTS[0], 1.48)],
)  # fmt: skip
def test_traffic_of_pooling_is_as_recorded(dtype, layout, most):
    """Above 1 in channels_last are the indices alone: 8 bytes each, two at a time."""
    x = random(2, 16, 16, 16, dtype=dtype, layout=layout, grad=True)
    with pyconv.cuda_emulator(check=True) as report:
        ops.max_pool2d(x, 3, 2, 1, algorithm="packs").sum().backward()
        ops.avg_pool2d(x, 3, 2, 1, algorithm="packs").sum().backward()
    assert report.errors == []
    excess = sum(t.cost for t in report.traffic) / sum(t.least for t in report.traffic)
    assert excess <= most, f"{excess:.3f}\n{report}"


@pytest.mark.parametrize(
    ("dtype", "layout", "most"),
    [
        (torch.float32, LAYOUTS[0], 1.006),
        (torch.float32, LAYOUTS[1], 1.025),
        (torch.bfloat16, LAYOUTS[0], 1.01),
        (torch.bfloat16, LAYOUTS[1], 1.37),
    ],
)
def test_traffic_of_batch_norm_is_as_recorded(dtype, layout, most):
    """x, dy, y, residual and their gradients at 1, 16 bytes a lane; above it what there is per channel,
    floats, of which eight channels of halves take two requests."""
    x, z = (random(2, 64, 8, 16, dtype=dtype, layout=layout, grad=True) for _ in range(2))
    w, b = (random(64, grad=True) for _ in range(2))
    with pyconv.cuda_emulator(check=True) as report:
        y = ops.batch_norm_relu(
            x, None, None, w, b, True, residual=z, ceiling=2, algorithm="welford"
        )
        y.backward(random(*y.shape, dtype=dtype, layout=layout))
    assert report.errors == []
    rows = [t for t in report.traffic if t.memory == "global"]
    wide = [t for t in rows if t.bytes == 16 and t.excess == 1]
    # Reads of x (twice forward, twice back), dy and y (twice), z; writes of y, dx and dz. A pass
    # over an image is 64 * 8 * 16 values twice, over 32 bytes a sector.
    assert sum(t.cost for t in wide) >= 12 * x.numel() * x.element_size() / 32
    excess = sum(t.cost for t in rows) / sum(t.least for t in rows)
    assert excess <= most, f"{excess:.3f}\n{report}"
    assert all(t.excess == 1 for t in report.traffic if t.memory == "shared")


def test_every_convolution_has_a_recorded_traffic():
    tuned = set(_native.lib.cuda_algorithms["conv2d"]) - {"reference"}
    assert {algorithm for algorithm, *_ in RECORDED} == tuned
