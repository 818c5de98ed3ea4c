"""The models: sizes from the papers, torchvision's names, and the twin on torch.nn."""

import pytest
import torch

import pyconv.nn
from pyconv import models

PARAMETERS = {
    "lenet5": 61_706,
    "lenet5_relu": 61_706,
    "simple_cnn_3v7": 6_722,
    "simple_cnn": 30_282,
    "simple_cnn_bn": 30_542,
    "resnet18": 11_689_512,
    "resnet18_small": 11_173_962,
    "resnet20": 269_722,
}
INPUT = {"resnet18": (2, 3, 64, 64), "resnet18_small": (2, 3, 32, 32), "resnet20": (2, 3, 32, 32)}
CLASSES = {"simple_cnn_3v7": 2, "resnet18": 1000}


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_tested_here():
    assert models.names() == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_output_shape(name):
    model = models.build(name, nn=torch.nn)
    assert count(model) == PARAMETERS[name]
    y = model(torch.randn(INPUT.get(name, (2, 1, 28, 28))))
    assert y.shape == (2, CLASSES.get(name, 10))


@pytest.mark.parametrize("name", PARAMETERS)
def test_classes_and_channels_are_arguments(name):
    model = models.build(name, nn=torch.nn, num_classes=7, in_channels=2)
    shape = INPUT.get(name, (2, 1, 28, 28))
    assert model(torch.randn(shape[0], 2, *shape[2:])).shape == (2, 7)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="no model is called 'lenet': choose from lenet5, lenet5_"):
        models.build("lenet", nn=torch.nn)
    with pytest.raises(ValueError, match="variant must be 'sigmoid' or 'relu', got 'tanh'"):
        models.LeNet5(variant="tanh", nn=torch.nn)
    with pytest.raises(ValueError, match="stem must be 'imagenet' or 'small', got 'big'"):
        models.resnet18(stem="big", nn=torch.nn)
    with pytest.raises(ValueError, match="option must be 'A' or 'B', got 'C'"):
        models.resnet20(option="C", nn=torch.nn)


def test_resnet18_has_torchvisions_names_and_shapes():
    def norm(prefix, channels):
        vectors = ("weight", "bias", "running_mean", "running_var")
        return {f"{prefix}.{v}": (channels,) for v in vectors} | {
            f"{prefix}.num_batches_tracked": ()
        }

    expected = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    ni = 64
    for stage, nf in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            prefix = f"layer{stage}.{block}"
            expected[f"{prefix}.conv1.weight"] = (nf, ni, 3, 3)
            expected |= norm(f"{prefix}.bn1", nf)
            expected[f"{prefix}.conv2.weight"] = (nf, nf, 3, 3)
            expected |= norm(f"{prefix}.bn2", nf)
            if ni != nf:
                expected[f"{prefix}.downsample.0.weight"] = (nf, ni, 1, 1)
                expected |= norm(f"{prefix}.downsample.1", nf)
            ni = nf
    expected |= {"fc.weight": (1000, 512), "fc.bias": (1000,)}
    found = {k: tuple(v.shape) for k, v in models.resnet18(nn=torch.nn).state_dict().items()}
    assert list(found.items()) == list(expected.items())


def test_shortcut_options_of_resnet20():
    assert count(models.resnet20(option="B", nn=torch.nn)) == 272_474
    block = models.resnet20(nn=torch.nn).layer2[0]
    x = torch.randn(2, 16, 9, 9)
    y = block.downsample(x)
    assert y.shape == (2, 32, 5, 5)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


def test_lenet_variants_differ_in_units_and_pooling():
    kinds = {type(m).__name__ for m in models.LeNet5(nn=torch.nn).modules()}
    assert {"Sigmoid", "AvgPool2d"} <= kinds
    assert not {"ReLU", "MaxPool2d"} & kinds
    kinds = {type(m).__name__ for m in models.LeNet5(variant="relu", nn=torch.nn).modules()}
    assert {"ReLU", "MaxPool2d"} <= kinds
    assert not {"Sigmoid", "AvgPool2d"} & kinds


def test_batch_norm_follows_the_relu_as_in_the_chapter():
    first = [type(m).__name__ for m in models.simple_cnn(batch_norm=True, nn=torch.nn)[0]]
    last = [type(m).__name__ for m in models.simple_cnn(batch_norm=True, nn=torch.nn)[4]]
    assert first == ["Conv2d", "ReLU", "BatchNorm2d"]
    assert last == ["Conv2d", "BatchNorm2d"]


@pytest.mark.parametrize("name", [n for n in PARAMETERS if n != "resnet18"])
def test_twin_has_the_same_weights_outputs_and_gradients(name):
    torch.manual_seed(0)
    ours = models.build(name)
    torch.manual_seed(0)
    twin = models.build(name, nn=torch.nn)
    assert any(isinstance(m, pyconv.nn.Conv2d) for m in ours.modules())
    state, expected = ours.state_dict(), twin.state_dict()
    assert state.keys() == expected.keys()
    for key in state:
        assert torch.equal(state[key], expected[key]), key

    ours, twin = ours.double(), twin.double()
    x = torch.randn(INPUT.get(name, (2, 1, 28, 28)), dtype=torch.float64)
    y, y_twin = ours(x), twin(x)
    torch.testing.assert_close(y, y_twin)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    y_twin.backward(upstream)
    for (key, p), q in zip(ours.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=key)
