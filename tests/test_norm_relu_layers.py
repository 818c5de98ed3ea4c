"""BatchNormReLU2d, and what convert(fuse=True) makes of models: the function and the gradients of the two layers."""

import copy
import pickle

import pytest
import torch
from torch import nn

import pyconv
import pyconv.nn as ours
from pyconv import models, ops
from pyconv.nn.batch_norm_relu import NormReLUSequential
from tests.blocks import ConvNorm, InvertedResidual


def quiet(report):
    pass


def small():
    """Pairs, an inner Sequential, a norm without a ReLU, and one before another activation."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
        nn.BatchNorm2d(5),
        nn.ReLU6(),
        nn.BatchNorm2d(5),
        nn.Hardtanh(),
        nn.BatchNorm2d(5),
        nn.Hardtanh(0.0, 0.5),
        nn.BatchNorm2d(5),
    )


def steps(model, count=3, size=12):
    """Losses, gradients and buffers of some training steps, and an evaluation."""
    torch.manual_seed(7)
    found, parameters = [], list(model.parameters())
    for _ in range(count):
        y = model(torch.randn(4, 3, size, size, dtype=torch.float64))
        dy = torch.randn_like(y)
        gradients = torch.autograd.grad(y, parameters, dy)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= 0.01 * g
        found += [y, *gradients]
    found += list(model.state_dict().values())
    model.eval()
    found.append(model(torch.randn(4, 3, size, size, dtype=torch.float64)))
    model.train()
    return found


def mobile():
    """Blocks as torchvision writes them: convolution, norm and ReLU6 in a subclass of Sequential."""
    return nn.Sequential(
        ConvNorm(3, 8, 3, stride=2), *(InvertedResidual(8, nn.ReLU6) for _ in "ab")
    )


MODELS = {
    "sequential": small,
    "resnet20": lambda: models.build("resnet20", nn=nn),
    "resnet20 B": lambda: models.resnet20(option="B", nn=nn),
    "resnet18": lambda: models.build("resnet18", nn=nn),
    "mobilenet": mobile,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_model_trains_as_the_plain_one(name):
    torch.manual_seed(5)
    plain = MODELS[name]().double()
    fused = pyconv.convert(copy.deepcopy(plain), fuse=True, report=quiet)
    assert list(fused.state_dict()) == list(plain.state_dict())
    size = 40 if name == "resnet18" else 12
    for a, b in zip(steps(fused, size=size), steps(plain, size=size), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def counted(monkeypatch, model, x):
    """How often a forward calls each of the two operators."""
    calls = {"batch_norm": 0, "batch_norm_relu": 0}
    for name in calls:
        real = getattr(ops, name)

        def count(*args, name=name, real=real, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(ops, name, count)
    model(x)
    return calls["batch_norm"], calls["batch_norm_relu"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sequential", (2, 4)),
        ("resnet20", (0, 19)),
        ("resnet20 B", (2, 19)),
        ("resnet18", (3, 17)),
        ("mobilenet", (2, 5)),
    ],
)
def test_every_pair_is_one_operator(monkeypatch, name, expected):
    model = pyconv.convert(MODELS[name](), fuse=True, report=quiet)
    assert counted(monkeypatch, model, torch.randn(2, 3, 40, 40)) == expected


def test_revert_undoes_it():
    for build in MODELS.values():
        model, reports = build(), []
        classes = [type(m) for m in model.modules()]
        pyconv.convert(model, fuse=True, report=reports.append)
        assert reports[0].left == {}
        assert [type(m) for m in model.modules()] != classes
        pyconv.revert(model, report=quiet)
        assert [type(m) for m in model.modules()] == classes


def test_a_fused_subclass_of_sequential_is_still_one_of_its_class():
    model = pyconv.convert(mobile(), fuse=True, report=quiet)
    x = torch.randn(2, 3, 12, 12)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is type(model[0]) is not ConvNorm
        assert isinstance(other[0], ConvNorm)
        assert torch.equal(other(x), model(x))
    pyconv.convert(model, fuse=True, report=quiet)
    assert type(pyconv.revert(model, report=quiet)[0]) is ConvNorm


def test_a_sequential_with_a_forward_of_its_own_is_left_alone():
    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + super().forward(x)

    model = pyconv.convert(Twice(nn.BatchNorm2d(3), nn.ReLU()), fuse=True, report=quiet)
    assert type(model) is Twice


def test_without_fuse_no_block_changes():
    model = pyconv.convert(models.build("resnet20", nn=nn), report=quiet)
    assert type(model) is models.resnet.ResNet
    assert not any(type(m) is NormReLUSequential for m in model.modules())


def test_the_layers_of_a_fused_sequential_stay_what_they_are(monkeypatch):
    model = pyconv.convert(small(), fuse=True, report=quiet)
    x = torch.randn(2, 3, 12, 12)
    norm = model[1](model[0](x))
    assert (norm < 0).any()
    seen = []
    handle = model[1].register_forward_hook(lambda layer, args, y: seen.append(y.clone()))
    model(x)
    assert (seen[0] < 0).any(), "a hook sees what batch norm computes, not what ReLU leaves of it"
    handle.remove()
    twin = copy.deepcopy(model)
    twin[1] = nn.Identity()
    assert counted(monkeypatch, twin, x) == (2, 3)
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(sync[1]) is nn.SyncBatchNorm


def test_inference_fusion_sees_through_it():
    for build in MODELS.values():
        torch.manual_seed(5)
        model = build().double()
        steps(model, count=1, size=40)
        model.eval()
        x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
        reports = []
        plain = pyconv.fuse(model, report=reports.append)
        fused = pyconv.fuse(pyconv.convert(model, fuse=True, report=quiet), report=reports.append)
        assert reports[0] == reports[1]
        torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
def test_compiled_and_under_autocast(amp):
    torch.manual_seed(5)
    model = pyconv.convert(models.build("resnet20", nn=nn), fuse=True, report=quiet)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 16, 16)
    for each in (model, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            y = each(x)
        y.float().sum().backward()
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# --- the layer


def two_layers(norm, x, residual):
    y = norm(x)
    return torch.relu(y if residual is None else y + residual)


@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(
    "arguments", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}]
)
def test_the_layer_is_batch_norm_and_relu(arguments, with_residual):
    torch.manual_seed(5)
    layer = ours.BatchNormReLU2d(5, **arguments, dtype=torch.float64)
    judge = nn.BatchNorm2d(5, **arguments, dtype=torch.float64)
    judge.load_state_dict(layer.state_dict())
    for training in (True, True, False):
        layer.train(training), judge.train(training)
        x, z = torch.randn(2, 2, 5, 4, 3, dtype=torch.float64)
        z = z if with_residual else None
        torch.testing.assert_close(layer(x, z), two_layers(judge, x, z))
    torch.testing.assert_close(layer.state_dict(), judge.state_dict())
    assert repr(layer).startswith("BatchNormReLU2d(5, eps=1e-05")


def test_another_batch_norm_does_not_take_its_place():
    model = nn.Sequential(ours.BatchNormReLU2d(4))
    assert type(ours.SyncBatchNorm.convert_sync_batchnorm(model)[0]) is ours.BatchNormReLU2d


def test_the_layer_is_fused_with_a_convolution_for_inference():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ours.BatchNormReLU2d(4, ceiling=0.3)).eval()
    model[1].running_mean.normal_()
    x = torch.randn(2, 3, 6, 6)
    fused = pyconv.fuse(model, report=quiet)
    assert len(list(fused.children())) == 1
    torch.testing.assert_close(fused(x), model(x))
    assert fused(x).max() == torch.tensor(0.3)


def test_an_input_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match="expected 4D input"):
        ours.BatchNormReLU2d(4)(torch.zeros(4, 4))
