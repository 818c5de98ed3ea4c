"""pyconv.fuse: the same function in fewer layers, or a reason; never a different function."""

import copy
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import pyconv
import pyconv.nn as ours
from pyconv import models, ops
from pyconv.nn.fused import FusedConv2d
from tests.helpers import DTYPES, LAYOUTS

ids = {"ids": str}


def settled(model):
    """In evaluation mode, with statistics and scales as after some training."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2),
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.5, 0.5),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return model.eval()


def fused(model):
    """(fused model, its Report)."""
    reports = []
    return pyconv.fuse(model, report=reports.append), reports[0]


def check(model, *inputs, chains):
    """The same function in float64, with these chains fused; returns the report."""
    model = settled(model).double()
    inputs = [x.double() if isinstance(x, torch.Tensor) else x for x in inputs]
    with torch.no_grad():
        expected = model(*(copy.deepcopy(inputs)))
        fast, report = fused(model)
        torch.testing.assert_close(fast(*copy.deepcopy(inputs)), expected, rtol=1e-9, atol=1e-9)
    assert sorted(report.fused.values()) == sorted(chains)
    assert {k: v.stands_for for k, v in fast.named_modules() if type(v) is FusedConv2d} == (
        report.fused
    )
    assert not any(type(m) in (nn.Conv2d, nn.BatchNorm2d) for m in fast.modules())
    return report


def images(channels=3, size=8, n=2):
    return torch.randn(n, channels, size, size)


# --- twins of torchvision's blocks


def conv(ni, nf, kernel=3, **kwargs):
    return nn.Conv2d(ni, nf, kernel, padding=kernel // 2, bias=False, **kwargs)


class BasicBlock(nn.Module):
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(ni, nf, stride=stride), nn.BatchNorm2d(nf)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(nf, nf), nn.BatchNorm2d(nf)
        self.downsample = None
        if stride != 1 or ni != nf:
            self.downsample = nn.Sequential(conv(ni, nf, 1, stride=stride), nn.BatchNorm2d(nf))

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, ni, width, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(ni, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, stride=stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or ni != 4 * width:
            self.downsample = nn.Sequential(
                conv(ni, 4 * width, 1, stride=stride), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ConvNorm(nn.Sequential):
    def __init__(self, ni, nf, kernel, activation=nn.ReLU6, **kwargs):
        layers = [conv(ni, nf, kernel, **kwargs), nn.BatchNorm2d(nf)]
        super().__init__(*layers, *([activation(inplace=True)] if activation else []))


class InvertedResidual(nn.Module):
    def __init__(self, n, activation):
        super().__init__()
        self.conv = nn.Sequential(
            ConvNorm(n, 2 * n, 1, activation),
            ConvNorm(2 * n, 2 * n, 3, activation, groups=2 * n),
            conv(2 * n, n, 1),
            nn.BatchNorm2d(n),
        )

    def forward(self, x):
        return x + self.conv(x)


def test_basic_blocks():
    blocks = nn.Sequential(BasicBlock(3, 8), BasicBlock(8, 8), BasicBlock(8, 16, 2))
    inner = ["conv1 + bn1 + relu", "conv2 + bn2 + add + relu"]
    report = check(blocks, images(), chains=[*inner * 3, *["0 + 1"] * 2])
    assert report.left == {}
    assert "2.conv2_bn2_add_relu" in report.fused


def test_bottlenecks():
    blocks = nn.Sequential(Bottleneck(8, 4), Bottleneck(16, 4), Bottleneck(16, 4, 2))
    inner = ["conv1 + bn1 + relu", "conv2 + bn2 + relu", "conv3 + bn3 + add + relu"]
    report = check(blocks, images(8), chains=[*inner * 3, *["0 + 1"] * 2])
    assert report.left == {}


def test_inverted_residuals_open_the_sequential_that_is_added():
    check(InvertedResidual(4, nn.ReLU), images(4), chains=["0 + 1 + 2", "0 + 1 + 2", "2 + 3 + add"])
    check(InvertedResidual(4, nn.ReLU6), images(4), chains=["0 + 1", "0 + 1", "2 + 3 + add"])


@pytest.mark.parametrize("namespace", [nn, ours], ids=["torch", "pyconv"])
@pytest.mark.parametrize(
    ("name", "image", "chains"),
    [
        ("lenet5", (1, 28, 28), []),
        ("lenet5_relu", (1, 28, 28), ["conv1 + act1", "conv2 + act2"]),
        ("simple_cnn", (1, 28, 28), ["0 + 1"] * 4),
        ("simple_cnn_bn", (1, 28, 28), ["0 + 1"] * 5),
        (
            "resnet20",
            (3, 32, 32),
            ["conv1 + bn1 + relu"] * 10 + ["conv2 + bn2 + add + relu"] * 9,
        ),
        (
            "resnet18",
            (3, 64, 64),
            ["conv1 + bn1 + relu"] * 9 + ["conv2 + bn2 + add + relu"] * 8 + ["0 + 1"] * 3,
        ),
    ],
)
def test_our_models(name, image, chains, namespace):
    report = check(models.build(name, nn=namespace), torch.randn(2, *image), chains=chains)
    assert len(report.left) == (4 if name == "simple_cnn_bn" else 0)  # norms behind their ReLU


# --- what is a chain


class Forward(nn.Module):
    """Two convolutions, a batch norm, a ReLU, a parameter, and any forward."""

    def __init__(self, forward, n=4):
        super().__init__()
        self.a, self.b = nn.Conv2d(n, n, 3, padding=1), nn.Conv2d(n, n, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(n), nn.ReLU(inplace=True)
        self.shift = nn.Parameter(torch.randn(n, 1, 1))
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def in_place_between(m, x):
    h = torch.tanh(x)
    y = m.a(h)
    h.relu_()
    return y + h


def alias_of_the_sum(m, x):
    h = torch.tanh(x)
    alias = h
    h += m.norm(m.a(x))
    return m.relu(h) * alias


def module_in_place_between(m, x):
    h = torch.tanh(x)
    y = m.a(h)
    m.relu(h)
    return y + h


def alias_in_place_between(m, x):
    h = torch.tanh(x)
    alias = h[:, :2]
    y = m.a(h)
    alias.mul_(2)
    return y + h


def item_written_between(m, x):
    h = torch.tanh(x)
    y = m.a(h)
    h[:, 0] = 1
    return y + h


def shortcut_written(m, x):
    h = torch.tanh(x)
    h += m.norm(m.a(x))
    return m.relu(h) * h


def later_shortcut(m, x):
    y = m.norm(m.a(x))
    return torch.relu(y + torch.sigmoid(m.b(x)))


@pytest.mark.parametrize(
    ("forward", "chains"),
    [
        (lambda m, x: F.relu(m.norm(m.a(x))), ["a + norm + relu"]),
        (lambda m, x: m.norm(m.a(x)).relu(), ["a + norm + relu"]),
        (lambda m, x: m.a(x).relu_(), ["a + relu"]),
        (lambda m, x: F.relu(m.a(x), inplace=True), ["a + relu"]),
        (lambda m, x: torch.add(m.a(x), x), ["a + add"]),
        (lambda m, x: x.add(m.a(x)).relu(), ["a + add + relu"]),
        (lambda m, x: m.a(x).add_(x), ["a + add"]),
        (lambda m, x: m.a(x) + m.b(x), ["a + add"]),
        (
            lambda m, x: m.relu(m.b(m.relu(m.norm(m.a(x)))) + x),
            ["a + norm + relu", "b + add + relu"],
        ),
        (later_shortcut, ["a + norm + add + relu"]),
        # each layer of a chain is read by the next alone
        (lambda m, x: (y := m.a(x)) * m.norm(y), []),
        (lambda m, x: (y := m.norm(m.a(x))) * y.relu(), ["a + norm"]),
        (lambda m, x: (m.a(x), m.norm(x)), []),
        (lambda m, x: (y := m.a(x)) + y, []),
        # other orders
        (lambda m, x: m.norm(m.relu(m.a(x))), ["a + relu"]),
        (lambda m, x: m.a(m.relu(m.norm(x))), []),
        (lambda m, x: m.relu(m.a(x)) + x, ["a + relu"]),
        (lambda m, x: m.norm(m.a(x) + x), ["a + add"]),
        # not the sum it looks like
        (lambda m, x: m.a(x) + 1, []),
        (lambda m, x: torch.add(m.a(x), x, alpha=2), []),
        (lambda m, x: m.a(x) - x, []),
        (lambda m, x: F.relu6(m.a(x)), []),
        # another shape or dtype: added apart, as torch would
        (lambda m, x: m.relu(m.a(x) + m.shift), ["a + add + relu"]),
        (lambda m, x: m.relu(m.a(x[:1]) + x), ["a + add + relu"]),
        (lambda m, x: m.a(x) + x.float(), ["a + add"]),
        # one convolution twice
        (lambda m, x: m.relu(m.a(m.norm(m.a(x)))), ["a + norm", "a + relu"]),
        (lambda m, x: m.relu(m.a(m.relu(m.a(x)))), ["a + relu", "a + relu"]),
        # what a convolution reads may not be written before it runs
        (in_place_between, []),
        (module_in_place_between, []),
        (alias_in_place_between, []),
        (item_written_between, []),
        (shortcut_written, ["a + norm"]),
        (alias_of_the_sum, ["a + norm"]),
    ],
)
def test_chains(forward, chains):
    report = check(Forward(forward), images(4), chains=chains)
    allowed = "cannot be traced" if forward is item_written_between else "does not follow"
    assert all(allowed in why for name, why in report.left.items() if name != "norm")


def test_functions_of_pyconv_are_followed():
    def forward(m, x):
        return ops.max_pool2d(F.relu(m.a(ours.functional.avg_pool2d(x, 2))), 2)

    check(Forward(forward), images(4), chains=["a + relu"])


@pytest.mark.parametrize(
    "arguments",
    [
        dict(bias=False),
        dict(stride=2, dilation=2),
        dict(groups=2, padding="same"),
        dict(padding="valid"),
        dict(padding=(2, 1), padding_mode="reflect"),
        dict(padding="same", padding_mode="circular"),
    ],
    **ids,
)
@pytest.mark.parametrize("norm", [dict(), dict(affine=False), dict(eps=0.1)], **ids)
def test_arguments_of_the_layers(arguments, norm):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, **arguments), nn.BatchNorm2d(6, **norm), nn.ReLU())
    check(model, images(4), chains=["0 + 1 + 2"])


def test_sync_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4))
    check(model, images(), chains=["0 + 1"])


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


# --- the contract


def test_mistakes():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        pyconv.fuse("resnet20")
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        pyconv.fuse(models.build("resnet20"))


def test_the_model_given_is_untouched():
    model = settled(models.build("resnet20", nn=torch.nn))
    before, text = copy.deepcopy(model.state_dict()), str(model)
    tensors = {k: (id(v), v._version) for k, v in model.state_dict(keep_vars=True).items()}
    fast = pyconv.fuse(model)
    for parameter in fast.parameters():
        parameter.data.zero_()
    assert str(model) == text
    assert {k: (id(v), v._version) for k, v in model.state_dict(keep_vars=True).items()} == tensors
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())


def test_the_random_state_is_untouched():
    model = settled(models.build("resnet20"))
    torch.manual_seed(1)
    pyconv.fuse(model)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)


def test_for_inference_only():
    fast = pyconv.fuse(settled(models.build("resnet20")))
    assert not any(m.training for m in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    x = torch.randn(1, 3, 32, 32)
    assert not fast(x).requires_grad
    with pytest.raises(RuntimeError, match="inference only"):
        fast(x.requires_grad_())
    assert fast.eval() is fast
    with pytest.raises(RuntimeError, match=r"for inference; train the model that pyconv\.fuse"):
        fast.train()


def test_the_fold_is_float64_rounded_once():
    layer, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    fast = pyconv.fuse(settled(nn.Sequential(layer, norm)))
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = layer.weight.double() * scale[:, None, None, None]
    bias = (layer.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    (one,) = fast.children()
    assert torch.allclose(one.weight.double(), weight, rtol=2**-24, atol=0)
    assert torch.allclose(one.bias.double(), bias, rtol=2**-24, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES[1:], **ids)
@pytest.mark.parametrize("name", ["resnet20", "simple_cnn"])
def test_no_further_from_float64_than_the_model_in_evaluation(name, dtype, layout):
    model = settled(models.build(name, nn=torch.nn, in_channels=3)).to(dtype)
    model = model.to(memory_format=layout)
    x = torch.randn(4, 3, 32, 32).to(dtype).to(memory_format=layout)
    exact = copy.deepcopy(model).double()(x.double())
    with torch.no_grad():
        error = (model(x).double() - exact).abs().max()
        y = pyconv.fuse(model)(x)
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() <= 3 * error + torch.finfo(dtype).eps


def test_nan_reaches_the_output():
    fast = pyconv.fuse(settled(nn.Sequential(BasicBlock(3, 3), nn.AdaptiveAvgPool2d(1))))
    x = images()
    x[0, 0, 4, 4] = float("nan")
    assert fast(x)[0].isnan().all()
    assert not fast(x)[1].isnan().any()


def test_empty_batch():
    fast = pyconv.fuse(settled(BasicBlock(3, 8)))
    assert fast(torch.randn(0, 3, 8, 8)).shape == (0, 8, 8, 8)


def test_fusing_twice_is_fusing_once():
    for model in (BasicBlock(3, 8), InvertedResidual(4, nn.ReLU), models.build("simple_cnn_bn")):
        once = pyconv.fuse(settled(model))
        twice, report = fused(once)
        assert str(twice) == str(once)
        assert report.fused == {}
        torch.testing.assert_close(twice.state_dict(), once.state_dict(), rtol=0, atol=0)


def test_a_converted_model_can_be_fused_and_converting_changes_nothing_more():
    model = settled(BasicBlock(3, 8))
    fast = pyconv.fuse(pyconv.convert(copy.deepcopy(model)))
    x = images()
    expected = fast(x)
    torch.testing.assert_close(expected, model(x), rtol=1e-4, atol=1e-5)
    reports = []
    pyconv.convert(fast, report=reports.append)
    assert (reports[0].swapped, reports[0].left) == ({}, {})
    assert torch.equal(fast(x), expected)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles(again):
    fast = pyconv.fuse(settled(models.build("resnet20")))
    twin = again(fast)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(twin(x), fast(x))
    assert str(twin) == str(fast)
    assert not any(m.training for m in twin.modules())
    assert twin.stages == fast.stages == ["layer1", "layer2", "layer3"]


def test_state_dict_round_trip():
    torch.manual_seed(1)
    a = pyconv.fuse(settled(models.build("resnet20")))
    b = pyconv.fuse(settled(models.build("resnet20")))
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(a(x), b(x))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x), b(x))
    assert "layer1.0.conv2_bn2_add_relu.bias" in a.state_dict()


def test_the_repr_names_what_a_layer_stands_for():
    text = str(pyconv.fuse(settled(BasicBlock(3, 3))))
    assert "FusedConv2d(3, 3, kernel_size=(3, 3)" in text
    assert "stands_for='conv2 + bn2 + add + relu'" in text


def test_the_report_and_the_log(caplog, capsys):
    model = settled(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)))
    pyconv.fuse(model, report=print)
    assert capsys.readouterr().out.splitlines() == [
        "1 fused layers",
        "  0_1 = 0 + 1",
        "  left 2: this BatchNorm2d does not follow a convolution that only it reads",
    ]
    with caplog.at_level(logging.INFO, "pyconv"):
        pyconv.fuse(model)
        pyconv.fuse(model[:2].eval())
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


def test_forced_algorithms_are_kept():
    model = settled(ours.Sequential(ours.Conv2d(3, 3, 1), ours.BatchNorm2d(3)))
    model[0].algorithm = "reference"
    (layer,) = pyconv.fuse(model).children()
    assert layer.algorithm == "reference"
    assert "algorithm='reference'" in str(layer)


def test_compile_and_export():
    fast = pyconv.fuse(settled(nn.Sequential(BasicBlock(3, 8), Bottleneck(8, 2), nn.Flatten())))
    x = images()
    expected = fast(x)
    torch.testing.assert_close(torch.compile(fast, fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(fast, (x,)).module()(x), expected)


def test_autocast():
    model = settled(models.build("resnet20"))
    fast = pyconv.fuse(model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, expected = fast(x), model(x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("channels_last", [False, True])
def test_only_the_fused_operator_runs(channels_last):
    fast = pyconv.fuse(settled(nn.Sequential(BasicBlock(3, 8), BasicBlock(8, 8))))
    x = images()
    if channels_last:
        fast, x = (t.to(memory_format=torch.channels_last) for t in (fast, x))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = fast(x)
    names = {event.name for event in profile.events() if "::" in event.name}
    assert "pyconv::_conv2d_fused" in names
    assert not any(
        "add" in n or "relu" in n or "norm" in n for n in names - {"pyconv::_conv2d_fused"}
    )
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
