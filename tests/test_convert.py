"""convert and revert: what is swapped, what is kept, what is left and why."""

import copy
import logging

import pytest
import torch
from networks import images, network
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pyconv
import pyconv.nn as ours


def swapped(model):
    reports = []
    pyconv.convert(model, report=reports.append)
    return reports[0].swapped


def left(model):
    reports = []
    pyconv.convert(model, report=reports.append)
    return reports[0].left


def left_only(model):
    """The one reason for the one layer that is left."""
    ((_, why),) = left(model).items()
    return why


class TestConvert:
    def test_swaps_in_place_and_returns_the_model(self):
        model = network(nn)
        layers = list(model)
        assert pyconv.convert(model) is model
        assert all(a is b for a, b in zip(model, layers))
        for layer in layers:
            known = getattr(ours, type(layer).__name__)
            assert type(layer) is known
        assert not any(type(m) is nn.Conv2d for m in model.modules())

    def test_same_function_same_gradients(self):
        model = network(nn)
        twin = pyconv.convert(copy.deepcopy(model))
        for training in (True, False):
            for each in (model, twin):
                each.train(training)
            x = images()
            y, expected = twin(x), model(x)
            torch.testing.assert_close(y, expected)
            dy = torch.randn_like(y)
            torch.testing.assert_close(
                torch.autograd.grad(y, list(twin.parameters()), dy),
                torch.autograd.grad(expected, list(model.parameters()), dy),
            )
        torch.testing.assert_close(twin.state_dict(), model.state_dict())

    def test_keeps_what_hangs_on_a_layer(self):
        model = network(nn).eval()
        conv, calls = model[0], []
        conv.register_forward_hook(lambda *_: calls.append("forward"))
        conv.register_forward_pre_hook(lambda *_: calls.append("before"))
        conv.register_full_backward_hook(lambda *_: calls.append("backward"))
        conv.name = "stem"
        conv.weight.requires_grad_(False)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        before = {k: id(v) for k, v in (*model.named_parameters(), *model.named_buffers())}
        keys, text = list(model.state_dict()), repr(model)

        pyconv.convert(model)

        assert {k: id(v) for k, v in (*model.named_parameters(), *model.named_buffers())} == before
        assert {id(p) for p in optimiser.param_groups[0]["params"]} == {
            id(p) for p in model.parameters()
        }
        assert (list(model.state_dict()), repr(model)) == (keys, text)
        assert model[0].name == "stem"
        assert not model[0].training
        assert not model[0].weight.requires_grad
        model(images().requires_grad_()).sum().backward()
        assert calls == ["before", "forward", "backward"]

    def test_optimiser_trains_the_converted_model(self):
        model = network(nn)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        pyconv.convert(model)
        before = model[0].weight.clone()
        model(images()).square().sum().backward()
        optimiser.step()
        assert not torch.equal(model[0].weight, before)

    def test_a_shared_layer_is_swapped_for_all_its_parents(self):
        shared = nn.Conv2d(3, 3, 1)
        model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared, shared)})
        assert swapped(model) == {"a.0": "Conv2d"}
        assert model["a"][0] is model["b"][0] is model["b"][1] is shared
        assert type(shared) is ours.Conv2d

    def test_the_model_may_be_a_layer(self):
        layer = nn.Conv2d(1, 1, 1)
        assert pyconv.convert(layer) is layer
        assert type(layer) is ours.Conv2d

    def test_twice_is_once(self):
        model = pyconv.convert(network(nn))
        assert swapped(model) == {}
        assert left(model) == {}

    def test_tied_weights_stay_tied(self):
        model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
        model[1].weight = model[0].weight
        pyconv.convert(model)
        assert model[0].weight is model[1].weight

    def test_lazy_layers(self):
        model = pyconv.convert(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()))
        model(torch.randn(2, 3, 5, 5))
        assert [type(m) for m in model] == [ours.Conv2d, ours.BatchNorm2d]

    def test_sync_batch_norm(self):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(pyconv.convert(network(nn)))
        assert type(model[1]) is nn.SyncBatchNorm
        pyconv.convert(model)
        assert type(model[1]) is ours.SyncBatchNorm

    def test_a_traced_graph(self):
        model, x = network(nn).eval(), images()
        graph = pyconv.convert(torch.fx.symbolic_trace(model))
        assert type(graph.get_submodule("0")) is ours.Conv2d
        torch.testing.assert_close(graph(x), model(x))

    def test_fused_with_batch_norm(self):
        model, x = network().eval(), images()
        fused = torch.nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1])
        assert type(fused) is ours.Conv2d
        torch.testing.assert_close(fused(x), model[1](model[0](x)))

    def test_transfers_weights_of_a_torch_checkpoint(self):
        model, other = pyconv.convert(network(nn)), network(nn)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model.eval()(x := images()), other.eval()(x))


class TestParametrized:
    @pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
    def test_parametrizations_stay(self, wrap):
        layer = wrap(nn.Conv2d(2, 3, 3)).double().eval()
        copied = copy.deepcopy(layer)
        expected, keys = layer(x := images()), list(layer.state_dict())
        pyconv.convert(layer)
        assert parametrize.is_parametrized(layer)
        assert isinstance(layer, ours.Conv2d)
        assert repr(layer) == repr(copied)
        assert list(layer.state_dict()) == keys
        torch.testing.assert_close(layer(x), expected)
        assert not isinstance(copied, ours.Conv2d)
        torch.testing.assert_close(copied(x), expected)

        parametrize.remove_parametrizations(layer, "weight")
        assert type(layer) is ours.Conv2d
        torch.testing.assert_close(layer(x), expected)

    def test_revert(self):
        layer = parametrizations.weight_norm(ours.Conv2d(2, 3, 3))
        pyconv.revert(layer)
        assert not isinstance(layer, ours.Conv2d)
        assert parametrize.is_parametrized(layer)
        assert type(parametrize.remove_parametrizations(layer, "weight")) is nn.Conv2d

    def test_hook_based_weight_norm(self):
        layer = torch.nn.utils.spectral_norm(nn.Conv2d(2, 3, 3)).double().eval()
        expected = layer(x := images())
        torch.testing.assert_close(pyconv.convert(layer)(x), expected)


class TestLeft:
    def test_a_subclass(self):
        class Doubled(nn.Conv2d):
            def forward(self, x):
                return 2 * super().forward(x)

        assert left_only(nn.Sequential(Doubled(1, 1, 1))) == (
            "Doubled is a subclass of Conv2d and may compute something else"
        )

    def test_a_subclass_of_ours_is_ours_already(self):
        class Doubled(ours.Conv2d):
            pass

        assert left(nn.Sequential(Doubled(1, 1, 1))) == {}

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv1d(1, 1, 1),
            nn.Conv3d(1, 1, 1),
            nn.LazyConv1d(1, 1),
            nn.BatchNorm1d(1),
            nn.MaxPool3d(2),
            nn.AdaptiveAvgPool1d(1),
            nn.LPPool2d(2, 2),
            nn.FractionalMaxPool2d(2, 1),
        ],
        ids=lambda layer: type(layer).__name__,
    )
    def test_a_kind_pyconv_has_not(self, layer):
        assert left_only(nn.Sequential(layer)) == f"pyconv has no {type(layer).__name__}"

    def test_dtypes_pyconv_has_not(self):
        why = left_only(nn.Sequential(nn.Conv2d(1, 1, 1, dtype=torch.complex64)))
        assert why == "Conv2d of torch.complex64; pyconv has float32, float64, bfloat16, float16"

    def test_quantised(self):
        model = nn.Sequential(torch.ao.nn.quantized.Conv2d(1, 1, 1))
        assert "quantised" in left_only(model)

    def test_torchscript(self):
        model = nn.Sequential(
            nn.Conv2d(1, 1, 1), torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2))
        )
        assert swapped(model) == {"0": "Conv2d"}
        assert "TorchScript" in left_only(model)

    def test_compiled(self):
        compiled = torch.compile(nn.Conv2d(1, 1, 1), backend="eager")
        assert "compiled already" in left_only(compiled)
        in_place = nn.Conv2d(1, 1, 1)
        in_place.compile(backend="eager")
        assert "compiled already" in left_only(in_place)
        assert type(in_place) is nn.Conv2d

    def test_a_forward_replaced_on_the_object(self):
        layer = nn.Conv2d(1, 1, 1)
        layer.forward = lambda x: x
        assert "replaced on the object" in left_only(layer)

    def test_layers_that_are_no_business_of_ours(self):
        model = nn.Sequential(nn.Linear(1, 1), nn.GroupNorm(1, 1), nn.LayerNorm(1), nn.Dropout2d())
        assert left(model) == swapped(model) == {}

    def test_not_a_module(self):
        with pytest.raises(
            TypeError, match=r"convert: model must be a torch\.nn\.Module, got list"
        ):
            pyconv.convert([])


class TestReport:
    def test_text(self):
        texts = []
        model = nn.Sequential(
            nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.MaxPool2d(2), nn.Conv3d(1, 1, 1)
        )
        pyconv.convert(model, report=lambda report: texts.append(str(report)))
        assert texts == ["3 layers swapped: 2 Conv2d, 1 MaxPool2d\n  left 3: pyconv has no Conv3d"]

    def test_the_log_warns_of_what_is_left(self, caplog):
        with caplog.at_level(logging.INFO, logger="pyconv"):
            pyconv.convert(nn.Sequential(nn.Conv2d(1, 1, 1)))
            pyconv.convert(nn.Sequential(nn.Conv3d(1, 1, 1)))
        assert [r.levelno for r in caplog.records] == [logging.INFO, logging.WARNING]
        assert "left 0: pyconv has no Conv3d" in caplog.records[1].getMessage()


class TestRevert:
    def test_is_the_inverse(self):
        model = network(nn)
        twin = copy.deepcopy(model)
        tensors = {k: id(v) for k, v in model.state_dict(keep_vars=True).items()}
        assert pyconv.revert(pyconv.convert(model)) is model
        assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]
        assert {k: id(v) for k, v in model.state_dict(keep_vars=True).items()} == tensors
        for a, b in zip(model.modules(), twin.modules()):
            assert vars(a).keys() == vars(b).keys()
        torch.testing.assert_close(model(x := images()), twin(x), rtol=0, atol=0)

    def test_layers_born_ours(self):
        model = pyconv.revert(ours.Sequential(ours.Conv2d(1, 2, 3), ours.LazyBatchNorm2d()))
        assert [type(m) for m in model] == [nn.Conv2d, nn.LazyBatchNorm2d]

    def test_leaves_subclasses_and_the_rest(self):
        class Doubled(ours.Conv2d):
            pass

        reports = []
        model = nn.Sequential(Doubled(1, 1, 1), nn.Conv3d(1, 1, 1), nn.Conv2d(1, 1, 1))
        pyconv.revert(model, report=reports.append)
        assert reports[0].left == {
            "0": "Doubled is a subclass of Conv2d and may compute something else"
        }
        assert reports[0].swapped == {}
