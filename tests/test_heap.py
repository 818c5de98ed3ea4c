"""A call leaves nothing in the heap: a few bytes would lie between a training step's tensors and keep their places."""

import ctypes

import pytest
import torch

from pyconv import _native, ops

pytestmark = pytest.mark.skipif(_native.lib is None, reason="the compiled half is missing")

CALLS = 2000


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(7)] + [
        ("uordblks", ctypes.c_size_t),  # in use
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


@pytest.fixture
def bytes_in_use():
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        pytest.skip("needs glibc 2.33 or later, which tells how much of its heap is in use")
    mallinfo2.restype = _Mallinfo2
    return lambda: mallinfo2().uordblks


X, W, ONES = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3), torch.ones(4)
POOLED, INDICES = torch.nn.functional.max_pool2d(X, 2, return_indices=True)
OPERATORS = {
    "conv2d": lambda x: ops.conv2d(x, W, ONES),
    "conv_transpose2d": lambda x: ops.conv_transpose2d(x, W),
    "max_pool2d": lambda x: ops.max_pool2d(x, 2),
    "max_pool2d, indices": lambda x: ops.max_pool2d(x, 2, return_indices=True)[0],
    "avg_pool2d": lambda x: ops.avg_pool2d(x, 2),
    "adaptive_max_pool2d": lambda x: ops.adaptive_max_pool2d(x, 3),
    "adaptive_avg_pool2d": lambda x: ops.adaptive_avg_pool2d(x, 3),
    "max_unpool2d": lambda x: ops.max_unpool2d(x[:, :, :4, :4], INDICES, 2),
    "batch_norm": lambda x: ops.batch_norm(x, ONES, ONES, None, None, True, momentum=0.0),
    "batch_norm, evaluation": lambda x: ops.batch_norm(x, ONES, ONES, None, None),
    "batch_norm_relu": lambda x: ops.batch_norm_relu(x, None, None, ONES, ONES, True),
}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_call_leaves_nothing_in_the_heap(name, backward, bytes_in_use):
    x = X.clone().requires_grad_(backward)

    def call():
        y = OPERATORS[name](x)
        if backward:
            torch.autograd.grad(y, x, torch.ones_like(y))

    def growth():
        before = bytes_in_use()
        for _ in range(CALLS):
            call()
        return bytes_in_use() - before

    # malloc's smallest piece is 32 bytes; the least of three, for Python's own caches may grow meanwhile.
    assert min(growth() for _ in range(3)) < CALLS * 8
