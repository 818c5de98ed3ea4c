"""pyconv.fuse: what it cannot follow it leaves, and says why; never a different function."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.blocks import BasicBlock, check, fused, images, settled


@pytest.mark.parametrize(
    ("norm", "why"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False), "statistics of each batch"),
        (nn.BatchNorm2d(4).register_forward_hook, "hooks"),
        (nn.InstanceNorm2d(4), None),
    ],
)
def test_norms_that_cannot_be_folded(norm, why):
    if why == "hooks":
        norm(lambda *_: None)
        norm = norm.__self__
    report = check(nn.Sequential(nn.Conv2d(3, 4, 3), norm), images(), chains=[])
    assert [why in each for each in report.left.values()] == ([True] if why else [])


def test_a_norm_left_in_training_is_not_folded():
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].train()
    fast, report = fused(model)
    assert report.fused == {}
    assert "statistics of each batch" in report.left["1"]
    assert fast[1].training


@pytest.mark.parametrize("kind", ["parametrized", "hooked", "subclass", "forward", "complex"])
def test_convolutions_that_do_more_than_their_class_says(kind):
    class Twice(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = (Twice if kind == "subclass" else nn.Conv2d)(3, 4, 3).double()
    if kind == "parametrized":
        layer = parametrizations.weight_norm(layer)
    elif kind == "hooked":
        layer.register_forward_hook(lambda m, args, y: 2 * y)
    elif kind == "forward":
        layer.forward = lambda x: 3 * F.conv2d(x, layer.weight)
    elif kind == "complex":
        layer = layer.to(torch.complex64)
    model = nn.Sequential(layer, nn.ReLU() if kind != "complex" else nn.Identity()).eval()
    x = images().to(layer.weight.dtype)
    fast, report = fused(model)
    assert report.fused == {}
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


# --- what tracing cannot follow


class Unfollowed(nn.Module):
    """Convolution, norm and ReLU, called by a forward that tracing would get wrong."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.register_buffer("count", torch.zeros(()))
        self.kept = []

    def usual(self, x):
        return self.block(self.relu(self.norm(self.conv(x))))


class BySize(Unfollowed):
    def forward(self, x):
        return self.usual(x) if x.shape[0] > 1 else self.usual(2 * x)


class ByValue(Unfollowed):
    def forward(self, x):
        return self.usual(x) if x.sum() > 0 else self.usual(-x)


class ByType(Unfollowed):
    def forward(self, x):
        x = x if isinstance(x, torch.Tensor) else torch.cat(x)
        return self.usual(x)


class Optional(Unfollowed):
    def forward(self, x, mask=None):
        return self.usual(x if mask is None else x * mask)


class Several(Unfollowed):
    def forward(self, *x):
        return self.usual(sum(x))


class Keeping(Unfollowed):
    def forward(self, x):
        self.kept = x
        return self.usual(x)


class Listing(Unfollowed):
    def forward(self, x):
        self.kept.append(x)
        return self.usual(x)


class Counting(Unfollowed):
    def forward(self, x):
        self.count.add_(1)
        return self.usual(x) * self.count


class Hooked(Unfollowed):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda m, args, y: 2 * y)

    def forward(self, x):
        return self.usual(x)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (BySize, "cannot be traced"),
        (ByValue, "cannot be traced"),
        (ByType, "decides by isinstance"),
        (Optional, "optional argument, mask"),
        (Several, "optional argument, x"),
        (Keeping, "keeps something"),
        (Listing, "keeps something"),
        (Counting, "keeps something"),
        (Hooked, "it has hooks"),
    ],
)
def test_what_cannot_be_followed_keeps_its_forward_and_says_why(kind, why):
    model = settled(kind())
    fast, report = fused(model)
    assert why in report.left[""]
    assert report.fused == {"block.0_1_2": "0 + 1 + 2"}
    assert type(fast) is kind
    assert fast.kept == []
    for x in (images(), images(n=1)):
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sliced", [1, slice(2)])  # a slice makes a new module: not traceable
def test_a_module_used_in_pieces_is_not_fused_inside(sliced):
    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
            self.sliced = sliced

        def forward(self, x):
            return self.features(x), self.features[0](x), self.features[self.sliced](x)

    model = settled(Pieces()).double()
    fast, _ = fused(model)
    x = images().double()
    for y, expected in zip(fast(x), model(x)):
        torch.testing.assert_close(y, expected)


def test_pieces_called_one_by_one_are_a_chain_of_the_caller():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()])
            self.blocks = nn.ModuleList([BasicBlock(3, 3), BasicBlock(3, 3)])

        def forward(self, x):
            for layer in (*self.layers, *self.blocks):
                x = layer(x)
            return x

    inner = ["conv1 + bn1 + relu", "conv2 + bn2 + add + relu"]
    report = check(Loop(), images(), chains=["0 + 1 + 2", *inner * 2])
    assert "layers.0_1_2" in report.fused


def test_weights_read_by_others():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(x)) * self.conv.weight.sum()

    check(Tied(), images(), chains=["conv + norm"])


def test_shared_modules():
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(
        block, nn.Sequential(block, conv, nn.BatchNorm2d(3)), conv, nn.BatchNorm2d(3), conv
    )
    check(model, images(), chains=["0 + 1 + 2", "1 + 3"])


def test_compiled_and_scripted_modules_are_left():
    model = nn.Sequential(
        torch.jit.script(settled(BasicBlock(3, 3))), nn.Conv2d(3, 3, 1), nn.ReLU()
    )
    fast, report = fused(model.eval())
    assert report.fused == {"1_2": "1 + 2"}
    assert "TorchScript" in report.left["0"]
    x = images()
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
