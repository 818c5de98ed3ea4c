"""override_torch: which calls of torch.nn.functional are routed, and which are not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import images, network
from torch import nn

import pyconv


def kernels_of(function):
    """The names of the operators that ran: pyconv's and torch's own for the same purpose."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    names = {event.name for event in profile.events()}
    kinds = ("conv", "pool", "batch_norm")
    return {n for n in names if "::" in n and any(kind in n.split("::")[1] for kind in kinds)}


CALLS = {
    "conv2d": lambda x: F.conv2d(x, x.new_ones(2, 3, 2, 2), padding="same"),
    "torch.conv2d": lambda x: torch.conv2d(x, x.new_ones(2, 3, 2, 2), stride=2),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, x.new_ones(3, 2, 2, 2)),
    "max_pool2d": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "max_pool2d, indices by name": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "max_pool2d, indices by place": lambda x: F.max_pool2d(x, 2, 2, 0, 1, False, True),
    "max_pool2d_with_indices": lambda x: F.max_pool2d_with_indices(x, 3, stride=2),
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
    "torch.max_pool2d, empty stride": lambda x: torch.max_pool2d(x, [3, 2], []),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (None, 2)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 2),
    "adaptive_max_pool2d, indices": lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "batch_norm, running": lambda x: F.batch_norm(x, x.new_zeros(3), x.new_ones(3), momentum=0.3),
    "torch.batch_norm": lambda x: torch.batch_norm(
        x, x.new_ones(3), x.new_zeros(3), None, None, True, 0.1, 1e-5, False
    ),
}


class TestOverride:
    @pytest.mark.parametrize("grad", [True, False])
    @pytest.mark.parametrize("name", CALLS)
    def test_functions(self, name, grad):
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=grad)
        call = CALLS[name]
        results = []

        def overridden():
            with pyconv.override_torch(), torch.set_grad_enabled(grad):
                results.append(call(x))

        names = kernels_of(overridden)
        assert names
        assert all(n.startswith("pyconv::") for n in names)
        actual, expected = results[0], call(x)
        torch.testing.assert_close(actual, expected)
        if grad:
            pair = [y[0] if isinstance(y, tuple) else y for y in (actual, expected)]
            dy = torch.randn_like(pair[0])
            torch.testing.assert_close(*[torch.autograd.grad(y, x, dy) for y in pair])

    def test_max_unpool2d(self):
        y, indices = F.max_pool2d(torch.randn(2, 3, 6, 6), 2, return_indices=True)
        results = []

        def overridden():
            with pyconv.override_torch():
                results.append(F.max_unpool2d(y, indices, 2))

        assert all(n.startswith("pyconv::") for n in kernels_of(overridden))
        torch.testing.assert_close(results[0], F.max_unpool2d(y, indices, 2), rtol=0, atol=0)

    @pytest.mark.parametrize("grad", [True, False])
    def test_layers_of_torch(self, grad):
        model, x = network(nn), images()
        twin = copy.deepcopy(model)
        results = []

        def overridden():
            with pyconv.override_torch(), torch.set_grad_enabled(grad):
                results.append(model(x))

        assert all(n.startswith("pyconv::") for n in kernels_of(overridden))
        expected = twin(x)
        torch.testing.assert_close(results[0].detach(), expected.detach())
        torch.testing.assert_close(model.state_dict(), twin.state_dict())
        if grad:
            results[0].square().sum().backward()
            expected.square().sum().backward()
            for p, q in zip(model.parameters(), twin.parameters()):
                torch.testing.assert_close(p.grad, q.grad)

    def test_backward_inside_the_context(self):
        x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
        w = torch.randn(3, 2, 3, 3, dtype=torch.float64)
        with pyconv.override_torch():
            F.conv2d(x, w).sum().backward()
        torch.testing.assert_close(x.grad, torch.autograd.grad(F.conv2d(x, w).sum(), x)[0])

    def test_what_pyconv_has_not_runs_on_torch(self):
        calls = [
            lambda: F.conv2d(*torch.ones(2, 1, 1, 3, 3, dtype=torch.complex64)),
            lambda: F.max_pool2d(torch.arange(16).view(1, 1, 4, 4), 2),
            lambda: F.conv1d(torch.ones(1, 1, 4), torch.ones(1, 1, 2)),
            lambda: F.conv3d(torch.ones(1, 1, 3, 3, 3), torch.ones(1, 1, 2, 2, 2)),
            lambda: F.batch_norm(torch.ones(2, 3, 4, 4, 4), None, None, training=True),
            lambda: F.relu(torch.ones(3)),
        ]
        for call in calls:
            with pyconv.override_torch():
                actual = call()
            torch.testing.assert_close(actual, call(), rtol=0, atol=0)

    def test_ends_with_the_block(self):
        x = torch.randn(1, 1, 4, 4)
        with pyconv.override_torch():
            pass
        assert all(n.startswith("aten::") for n in kernels_of(lambda: F.max_pool2d(x, 2)))

    def test_errors_are_ours(self):
        with (
            pyconv.override_torch(),
            pytest.raises(pyconv.ShapeError, match="conv2d: Given groups=1"),
        ):
            nn.Conv2d(3, 4, 3)(torch.randn(1, 2, 8, 8))
