"""pyconv.fuse: what its result promises: precision, inference only, copies, reports."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

import pyconv
import pyconv.nn as ours
from pyconv import models
from tests.blocks import BasicBlock, Bottleneck, InvertedResidual, fused, images, settled
from tests.helpers import DTYPES, LAYOUTS

ids = {"ids": str}


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
