"""pyconv.nn against torch.nn: the same names, arguments, weights, files and results."""

import copy
import io
import pickle

import pytest
import torch

import pyconv
import pyconv.nn as ours
from pyconv import _native
from pyconv.ops._algorithms import OPERATORS

CONV = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
BATCH, IMAGE = (2, 4, 9, 8), (4, 9, 8)

# (class, constructor arguments, input size): every layer of ours, each option at least once
LAYERS = [
    ("Conv2d", CONV, BATCH),
    ("Conv2d", {**CONV, "kernel_size": (1, 7), "stride": (1, 2), "padding": (0, 3)}, BATCH),
    ("Conv2d", {**CONV, "out_channels": 8, "groups": 4, "dilation": 2, "bias": False}, BATCH),
    ("Conv2d", {**CONV, "kernel_size": 4, "padding": "same"}, BATCH),
    ("Conv2d", {**CONV, "padding": "valid"}, IMAGE),
    ("Conv2d", {**CONV, "padding": (2, 1), "padding_mode": "reflect"}, BATCH),
    ("Conv2d", {**CONV, "padding": 1, "padding_mode": "replicate"}, IMAGE),
    ("Conv2d", {**CONV, "padding": "same", "padding_mode": "circular"}, BATCH),
    ("ConvTranspose2d", {**CONV, "stride": 2, "output_padding": 1}, BATCH),
    ("ConvTranspose2d", {**CONV, "padding": 1, "groups": 2, "dilation": 2, "bias": False}, IMAGE),
    ("MaxPool2d", {"kernel_size": 2}, BATCH),
    ("MaxPool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, IMAGE),
    ("MaxPool2d", {"kernel_size": (3, 2), "dilation": 2, "return_indices": True}, BATCH),
    ("AvgPool2d", {"kernel_size": 2}, BATCH),
    ("AvgPool2d", {"kernel_size": 3, "padding": 1, "count_include_pad": False}, IMAGE),
    ("AvgPool2d", {"kernel_size": (2, 3), "ceil_mode": True, "divisor_override": 5}, BATCH),
    ("AdaptiveAvgPool2d", {"output_size": (3, None)}, BATCH),
    ("AdaptiveAvgPool2d", {"output_size": 1}, IMAGE),
    ("AdaptiveMaxPool2d", {"output_size": (2, 3)}, BATCH),
    ("AdaptiveMaxPool2d", {"output_size": 2, "return_indices": True}, IMAGE),
    ("BatchNorm2d", {"num_features": 4}, BATCH),
    ("BatchNorm2d", {"num_features": 4, "eps": 1e-3, "momentum": 0.3, "affine": False}, BATCH),
    ("BatchNorm2d", {"num_features": 4, "momentum": None}, BATCH),
    ("BatchNorm2d", {"num_features": 4, "track_running_stats": False}, BATCH),
    ("SyncBatchNorm", {"num_features": 4}, BATCH),
    ("LazyConv2d", {"out_channels": 6, "kernel_size": 3, "padding": 1}, BATCH),
    ("LazyConvTranspose2d", {"out_channels": 6, "kernel_size": 3, "stride": 2}, BATCH),
    ("LazyBatchNorm2d", {}, BATCH),
]
IDS = [f"{name}-{'-'.join(map(str, arguments.values()))}" for name, arguments, _ in LAYERS]


def twins(name, arguments, dtype=torch.float64):
    """The layer of pyconv.nn and the layer of torch.nn, built from the same seed."""
    built = []
    for namespace in (ours, torch.nn):
        torch.manual_seed(1)
        built.append(getattr(namespace, name)(**arguments).to(dtype))
    return built


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize(("name", "arguments", "size"), LAYERS, ids=IDS)
class TestTwins:
    def test_same_class_name_repr_and_weights(self, name, arguments, size):
        layer, twin = twins(name, arguments)
        assert isinstance(layer, getattr(torch.nn, name)) or name == "SyncBatchNorm"
        assert type(layer) is getattr(ours, name) is not getattr(torch.nn, name)
        assert repr(layer) == repr(twin)
        if not name.startswith("Lazy"):
            torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=0, atol=0)

    def test_same_results_gradients_and_statistics(self, name, arguments, size):
        layer, twin = twins(name, arguments)
        for training in (True, True, False):  # the second training batch tells momentum from None
            x = torch.randn(size, dtype=torch.float64, requires_grad=True)
            for each in (layer, twin):
                each.train(training)
            ys, expected = outputs(layer(x)), outputs(twin(x))
            if name.startswith("Lazy"):
                twin.load_state_dict(layer.state_dict())
                expected = outputs(twin(x))
            torch.testing.assert_close(ys, expected)
            dy = torch.randn_like(ys[0])
            tensors = [x, *layer.parameters()], [x, *twin.parameters()]
            grads = [torch.autograd.grad(y[0], t, dy) for y, t in zip((ys, expected), tensors)]
            torch.testing.assert_close(*grads)
            if not name.startswith("Lazy"):
                torch.testing.assert_close(layer.state_dict(), twin.state_dict())

    def test_state_dict_both_ways_and_through_a_file(self, name, arguments, size):
        layer, twin = twins(name, arguments)
        x = torch.randn(size, dtype=torch.float64)
        for each in (layer, twin):
            each(x)
        twin.load_state_dict(layer.state_dict())
        layer.load_state_dict(twin.state_dict())
        assert list(layer.state_dict()) == list(twin.state_dict())
        assert layer.state_dict()._metadata == twin.state_dict()._metadata
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        torch.testing.assert_close(
            torch.load(file, weights_only=True), dict(twin.state_dict()), rtol=0, atol=0
        )

    def test_copies(self, name, arguments, size):
        layer, _ = twins(name, arguments)
        x = torch.randn(size, dtype=torch.float64)
        layer(x)
        layer.algorithm = "reference"
        layer.eval()
        expected = outputs(layer(x))
        for twin in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
            assert type(twin) is type(layer)
            assert twin.algorithm == "reference"
            torch.testing.assert_close(outputs(twin(x)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose2d", "BatchNorm2d"])
def test_lazy_layers_become_ours(kind):
    arguments = {"out_channels": 4, "kernel_size": 3} if "Conv" in kind else {}
    layer = getattr(ours, "Lazy" + kind)(**arguments)
    layer(torch.randn(2, 3, 8, 8))
    assert type(layer) is getattr(ours, kind)
    layer(torch.randn(2, 3, 8, 8))


def test_lazy_layer_computes_its_first_call_with_our_kernel():
    layer = ours.LazyConvTranspose2d(4, 3)
    y = layer(torch.randn(2, 3, 8, 8))
    assert "conv2d_bwd_input" in str(y.grad_fn.next_functions)


def test_channels_last_stays():
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    block = ours.Sequential(
        ours.Conv2d(4, 8, 3), ours.BatchNorm2d(8), ours.MaxPool2d(2), ours.AvgPool2d(2)
    )
    for layer in block:
        x = layer(x)
        assert x.is_contiguous(memory_format=torch.channels_last), layer


def test_max_unpool2d():
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    y, indices = torch.nn.MaxPool2d(2, return_indices=True)(x)
    for arguments in ({}, {"output_size": (9, 8)}):
        actual = ours.MaxUnpool2d(2)(y, indices, **arguments)
        expected = torch.nn.MaxUnpool2d(2)(y, indices, **arguments)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_conv_transpose2d_output_size():
    layer, twin = twins(
        "ConvTranspose2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2}
    )
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    for size in ([11, 13], [12, 14], (2, 6, 12, 13)):
        torch.testing.assert_close(layer(x, output_size=size), twin(x, output_size=size))
    with pytest.raises(ValueError, match="requested an output size"):
        layer(x, output_size=[40, 40])


def test_batch_norm_without_bias():
    try:
        layer, twin = twins("BatchNorm2d", {"num_features": 4, "bias": False})
    except TypeError:
        pytest.skip("this torch has no BatchNorm2d(bias=...)")
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), twin(x))


def test_batch_norm_errors():
    for namespace in (ours, torch.nn):
        with pytest.raises(ValueError, match="expected 4D input"):
            namespace.BatchNorm2d(4)(torch.randn(4, 5, 5))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            namespace.BatchNorm2d(4)(torch.randn(1, 4, 1, 1))


@pytest.mark.parametrize(
    "arguments",
    [
        {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "groups": 2},
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": "full"},
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding_mode": "mirror"},
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": "same", "stride": 2},
    ],
)
def test_constructor_errors_are_torchs(arguments):
    texts = []
    for namespace in (ours, torch.nn):
        with pytest.raises(ValueError, match=r"must be divisible|padding") as error:
            namespace.Conv2d(**arguments)
        texts.append(str(error.value))
    assert texts[0] == texts[1]


class TestAlgorithm:
    def test_a_kernel_by_name(self):
        layer = ours.Conv2d(3, 4, 3)
        assert layer.algorithm is None
        assert "algorithm" not in repr(layer)
        layer.algorithm = "reference"
        assert (
            repr(layer) == "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), algorithm='reference')"
        )
        assert list(layer.state_dict()) == ["weight", "bias"]
        layer(torch.randn(1, 3, 5, 5))

    @pytest.mark.skipif(_native.lib is None, reason=_native.reason)
    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("Conv2d", {"in_channels": 3, "out_channels": 4, "kernel_size": 3}),
            ("ConvTranspose2d", {"in_channels": 3, "out_channels": 4, "kernel_size": 3}),
            ("MaxPool2d", {"kernel_size": 2}),
            ("AvgPool2d", {"kernel_size": 2}),
            ("AdaptiveAvgPool2d", {"output_size": 2}),
            ("AdaptiveMaxPool2d", {"output_size": 2}),
            ("BatchNorm2d", {"num_features": 3}),
        ],
    )
    def test_reaches_the_kernel_list(self, name, arguments):
        layer = getattr(ours, name)(**arguments)
        layer.algorithm = "abacus"
        with pytest.raises(ValueError, match='no algorithm "abacus"'):
            layer(torch.randn(2, 3, 6, 6))

    def test_names(self):
        assert pyconv.algorithms("conv2d")[-1] == "reference"
        assert pyconv.algorithms("conv_transpose2d") == pyconv.algorithms("conv2d")
        with pytest.raises(ValueError, match=r"conv3d.*conv2d"):
            pyconv.algorithms("conv3d")


class TestNamespace:
    def test_every_name_of_torch_nn(self):
        public = [name for name in dir(torch.nn) if not name.startswith("_")]
        assert [name for name in public if not hasattr(ours, name)] == []
        assert ours.Linear is torch.nn.Linear
        assert ours.init is torch.nn.init

    def test_every_name_of_torch_nn_functional(self):
        public = [name for name in dir(torch.nn.functional) if not name.startswith("_")]
        assert [name for name in public if not hasattr(ours.functional, name)] == []
        assert ours.functional.relu is torch.nn.functional.relu
        for name in OPERATORS:
            assert getattr(ours.functional, name) is getattr(pyconv.ops, name)

    def test_max_pool2d_with_indices(self):
        x = torch.randn(1, 2, 6, 6)
        for name, argument in (("max_pool2d", 2), ("adaptive_max_pool2d", 3)):
            actual = getattr(ours.functional, f"{name}_with_indices")(x, argument)
            expected = getattr(torch.nn.functional, f"{name}_with_indices")(x, argument)
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    def test_a_whole_model(self):
        torch.manual_seed(0)

        def build(nn):
            return nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(36, 3),
            )

        model = build(ours).double()
        twin = build(torch.nn).double()
        twin.load_state_dict(model.state_dict())
        assert repr(model) == repr(twin)
        x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(model(x), twin(x))


@pytest.mark.parametrize("groups", [1, 2])
def test_grad_helpers_are_torch_nn_grads(groups):
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    w = torch.randn(6, 4 // groups, 3, 2, dtype=torch.float64)
    geometry = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": groups}
    dy = torch.randn_like(pyconv.ops.conv2d(x, w, **geometry))
    torch.testing.assert_close(
        pyconv.grad.conv2d_input(x.shape, w, dy, **geometry),
        torch.nn.grad.conv2d_input(x.shape, w, dy, **geometry),
    )
    torch.testing.assert_close(
        pyconv.grad.conv2d_weight(x, w.shape, dy, **geometry),
        torch.nn.grad.conv2d_weight(x, w.shape, dy, **geometry),
    )


def test_grad_helpers_are_differentiable_and_speak_clearly():
    x, w = (
        torch.randn(1, 1, 4, 4, dtype=torch.float64),
        torch.randn(1, 1, 2, 2, dtype=torch.float64),
    )
    dy = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda dy: pyconv.grad.conv2d_input(x.shape, w, dy), dy)
    assert torch.autograd.gradcheck(lambda dy: pyconv.grad.conv2d_weight(x, w.shape, dy), dy)
    with pytest.raises(pyconv.ShapeError, match=r"grad_output must have conv2d's output shape"):
        pyconv.grad.conv2d_input((1, 1, 5, 5), w, dy)
