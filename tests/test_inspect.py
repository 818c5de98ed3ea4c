"""pyconv.inspect's numbers against independent computations; its examples run; models stay as they were."""

import copy
import doctest
import importlib
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import pyconv
import pyconv.nn as ours
from pyconv import _native, data, inspect, models, train
from pyconv.inspect.activations import coprime
from pyconv.inspect.ladder import IDEAS

MODULES = sorted(path.stem for path in Path(inspect.__file__).parent.glob("[a-z]*.py"))
native = pytest.mark.skipif(_native.lib is None, reason=_native.reason)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, pyplot):
    if module in ("summary", "ladder") and _native.lib is None:
        pytest.skip(_native.reason)
    found = doctest.testmod(importlib.import_module(f"pyconv.inspect.{module}"))
    assert found.failed == 0
    assert found.attempted > 0


def test_every_public_name_has_an_example():
    missing = [name for name in inspect.__all__ if ">>> " not in getattr(inspect, name).__doc__]
    assert missing == []


def test_without_matplotlib_everything_but_plots_works():
    code = """
import sys
sys.modules["matplotlib"] = sys.modules["rich"] = None
import torch
from pyconv import inspect, models
print(inspect.summary(models.LeNet5(), torch.randn(1, 1, 28, 28), measure=False))
for draw in (inspect.schedule(20, lr=0.1).plot, inspect.summary(torch.nn.ReLU(), torch.ones(1)).__rich__):
    try:
        draw()
    except ImportError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "61,706" in run.stdout
    assert run.stdout.count("pip install 'pyconv[inspect]'") == 2


# --- summary and profile


def state_of(model):
    return {
        **{k: v.clone() for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same_state(before, model):
    after = state_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(torch.as_tensor(before[k]), torch.as_tensor(after[k])) for k in before)


@pytest.mark.parametrize("name", ["lenet5", "simple_cnn_bn", "resnet20"])
def test_summary_counts_what_torch_counts(name):
    twin = models.build(name, nn=torch.nn)
    size = (2, 3, 32, 32) if name == "resnet20" else (2, 1, 28, 28)
    with FlopCounterMode(display=False) as counted:
        twin(torch.randn(size))
    for model in (models.build(name), twin):
        model.train()
        before = state_of(model)
        found = inspect.summary(model, torch.randn(size), measure=False)
        before["random"] = torch.get_rng_state()  # of the line above
        assert_same_state(before, model)
        assert 2 * sum(r.multiply_adds for r in found.rows) == counted.get_total_flops()
        assert found.parameters == sum(p.numel() for p in model.parameters())
        assert sum(r.parameters for r in found.rows) == found.parameters
        assert found.rows[-1].output == (2, 10)


def test_a_layer_that_is_called_twice_counts_its_parameters_once():
    layer = torch.nn.Conv2d(2, 2, 1)
    found = inspect.summary(
        torch.nn.Sequential(layer, layer), torch.randn(1, 2, 3, 3), measure=False
    )
    assert [r.parameters for r in found.rows] == [6, 0]
    assert [r.multiply_adds for r in found.rows] == [36, 36]


@native
@pytest.mark.parametrize("backward", [False, True])
def test_profile_names_the_kernels_and_leaves_the_model(backward):
    model = torch.nn.Sequential(
        ours.Conv2d(3, 8, 3),
        torch.nn.ReLU(inplace=True),
        ours.BatchNorm2d(8),
        torch.nn.Conv2d(8, 4, 3),
        torch.nn.Dropout(0.5),
        ours.MaxPool2d(2),
        torch.nn.AvgPool2d(2),
        ours.ConvTranspose2d(4, 4, 3),
    )
    model[0].algorithm = "reference"
    x = torch.randn(2, 3, 12, 12)
    before = state_of(model)
    found = inspect.profile(model, x, backward=backward)
    assert_same_state(before, model)
    assert all(p.grad is None for p in model.parameters())
    norm, pool = (
        pyconv.explain(layer, torch.randn(2, c, side, side)).passes[0].chosen
        for layer, c, side in ((model[2].train(backward), 8, 10), (model[5], 4, 8))
    )
    kernels = [r.kernel for r in found.rows]
    assert kernels == ["reference", "", norm, "torch", "", pool, "torch", ""]
    assert norm in pyconv.algorithms("batch_norm")
    assert pool in pyconv.algorithms("max_pool2d")
    assert all(r.seconds > 0 and r.bound > 0 for r in found.rows)
    if backward:
        assert all(r.backward_seconds > 0 for r in found.rows)
    assert "backward" in str(found) or not backward


@native
def test_the_roofline_is_drawn(pyplot):
    ax = inspect.profile(models.LeNet5(), torch.randn(2, 1, 28, 28), backward=False).plot()
    assert {t.get_text() for t in ax.texts} == {"conv1", "conv2", "fc1", "fc2", "fc3"}


# --- activations


def test_statistics_are_those_of_float64(pyplot):
    model = torch.nn.Sequential(ours.Conv2d(2, 6, 3), torch.nn.Tanh())
    outputs = []
    model.register_forward_hook(lambda m, args, y: outputs.append(y.detach().double()))
    with inspect.ActivationStats(model, sample=None, bins=8, limit=0.8, near=0.1) as stats:
        for step in range(35):  # over a chunk
            model(torch.randn(3 + (step == 7), 2, 9, 8))
        model.eval()(torch.randn(1, 2, 9, 8))  # not seen
    assert len(stats.mean("1")) == 35
    for step, y in enumerate(outputs[:35]):
        assert stats.mean(1)[step].item() == pytest.approx(y.mean().item(), abs=1e-6)
        assert stats.std(1)[step].item() == pytest.approx(y.std(correction=0).item(), rel=1e-5)
        assert stats.near_zero(1)[step] == pytest.approx(
            (y.abs() < 0.1).double().mean().item(), abs=1e-6
        )
        edges = torch.arange(9) * 0.1
        edges[-1] = math.inf
        for i in range(8):
            inside = ((y.abs() >= edges[i]) & (y.abs() < edges[i + 1])).sum().item()
            assert abs(stats.histogram(1)[step, i].item() - inside) <= 1  # an edge, rounded
    assert len(stats.plot_layer_stats(1)) == 3
    (drawn,) = stats.color_dim("1", steps=20).images
    assert torch.equal(torch.tensor(drawn.get_array()), stats.histogram(1)[:20].log1p().T)
    assert len(stats.plot_layer_stats(1, steps=3)[0].lines[0].get_xdata()) == 3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sample_is_spread_over_channels_and_pixels(layout):
    y = torch.arange(16.0)[None, :, None, None].expand(32, 16, 14, 14)  # a value a channel
    y = y.contiguous(memory_format=layout)
    identity = torch.nn.Identity()
    with inspect.ActivationStats(identity, sample=1024) as stats:
        for _ in range(4):
            identity(y)
    error = y.std().item() / 1024**0.5
    assert (stats.mean(0) - 7.5).abs().max() < 5 * error
    assert stats.std(0).tolist() == pytest.approx([y.std(correction=0).item()] * 4, rel=0.05)
    assert stats.histogram(0).sum(1).min() > 900


@pytest.mark.parametrize(("least", "to"), [(1, 12), (4, 784 * 6), (49, 49), (7, 1)])
def test_coprime(least, to):
    step = coprime(least, to)
    assert step >= least
    assert len({i * step % to for i in range(to)}) == to


def test_dead_units_are_those_that_never_rise():
    model = torch.nn.Sequential(ours.Conv2d(1, 5, 3), torch.nn.ReLU(), torch.nn.Flatten())
    with torch.no_grad():
        model[0].bias[[1, 3]] = -1000
        model[0].bias[[0, 2, 4]] = 1000
    stats = inspect.ActivationStats(model)
    found = stats.dead_units(torch.randn(4, 1, 6, 6))
    stats.close()
    assert [(d.layer, d.dead, d.units) for d in found][:2] == [("0", [], 5), ("1", [1, 3], 5)]
    assert found[2].dead == [*range(16, 32), *range(48, 64)]


# --- training


def test_lr_find_leaves_the_model_and_finds_where_it_diverges(pyplot):
    torch.manual_seed(1)
    model, x = torch.nn.Linear(4, 1), torch.randn(256, 4)
    y = x @ torch.tensor([[1.0], [2], [3], [4]])
    before = state_of(model)
    found = inspect.lr_find(
        model, x, y, loss=F.mse_loss, optimizer=torch.optim.SGD, start=1e-4, end=100, steps=80
    )
    assert_same_state(before, model)
    # Gradient descent on this quadratic diverges above 2 / largest eigenvalue of its Hessian, about 1.
    largest = torch.linalg.eigvalsh(2 * x.T.double() @ x.double() / 256)[-1].item()
    assert found.steepest < 2 / largest < found.rates[-1] * 10
    assert len(found.rates) < 80
    found.plot()
    with pytest.raises(ValueError, match=r"start=1, end=0\.1"):
        inspect.lr_find(model, x, y, start=1, end=0.1)


def test_the_schedule_is_the_one_cycle_formula(pyplot):
    found, top = inspect.schedule(40, lr=0.5), 9  # 0.25 * 40 - 1
    for step in range(40):
        if step <= top:
            part = (1 - math.cos(math.pi * step / top)) / 2
            rate, momentum = 0.02 + (0.5 - 0.02) * part, 0.95 - 0.1 * part
        else:
            part = (1 - math.cos(math.pi * (step - top) / (39 - top))) / 2
            rate, momentum = 0.5 + (5e-6 - 0.5) * part, 0.85 + 0.1 * part
        assert found.rates[step].item() == pytest.approx(rate, rel=1e-9)
        assert found.momenta[step].item() == pytest.approx(momentum, rel=1e-9)
    found.plot()


def test_a_recorder_follows_a_run(pyplot):
    digits = data.load("mnist")
    digits = digits._replace(train=data.Split(*(t[:700] for t in digits.train)))
    flags = {
        "model": "lenet5",
        "data": "mnist",
        "epochs": 2,
        "batch_size": 200,
        "schedule": "one-cycle",
    }
    run = train.Run(train.resolve(flags), digits, torch.device("cpu"))
    recorder, expected = inspect.Recorder(), []
    forward = run._forward

    def watched(model, images):
        logits = forward(model, images)
        if model.training:
            order = torch.Generator().manual_seed(run.epoch)
            some = torch.randperm(700, generator=order)[run.step * 200 :][:200]
            labels = digits.train.labels[some]
            value = F.cross_entropy(logits.detach().double(), labels).item()
            expected.append((value, run.optimizer.param_groups[0]["lr"]))
        return logits

    run._forward = watched
    follow = recorder.following(run)
    while not run.finished():
        row = run.train_epoch(follow)
        recorder.epoch(accuracy=row["test_accuracy"])
    assert len(recorder.losses) == 8
    assert recorder.losses == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert recorder.rates == pytest.approx([rate for _, rate in expected])
    assert [m["step"] for m in recorder.metrics] == [4, 8]
    recorder.plot()


def test_confusion_and_mistakes_by_hand(pyplot):
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(16, 4)
    ).train()
    images, labels = torch.randn(1200, 1, 4, 4), torch.randint(0, 4, (1200,))
    found = inspect.confusion_matrix(model, images, labels, names=list("abcd"))
    logits = copy.deepcopy(model).eval().double()(images.double())
    expected = [[0] * 4 for _ in range(4)]
    for label, guess in zip(labels.tolist(), logits.argmax(1).tolist()):
        expected[label][guess] += 1
    assert found.matrix.tolist() == expected
    assert model.training
    pairs = sorted(
        ((expected[i][j], -i, -j) for i in range(4) for j in range(4) if i != j), reverse=True
    )
    assert found.most_confused(3) == [("abcd"[-i], "abcd"[-j], n) for n, i, j in pairs[:3]]
    losses = F.cross_entropy(logits, labels, reduction="none")
    losses[logits.argmax(1) == labels] = -1
    worst = inspect.worst_mistakes(model, images, labels, most=5)
    assert worst.indices.tolist() == losses.argsort(descending=True)[:5].tolist()
    assert worst.losses.tolist() == pytest.approx(
        losses.sort(descending=True).values[:5].tolist(), rel=1e-5
    )
    worst.plot()
    found.plot()


# --- ladder


@native
def test_every_kernel_has_an_idea():
    assert set(IDEAS) == set(pyconv.algorithms("conv2d"))


@native
@pytest.mark.parametrize("direction", ["fwd", "bwd_input", "bwd_weight"])
def test_the_ladder_has_every_kernel_that_can_run(direction, pyplot):
    found = inspect.ladder("conv2d", "mb2ic16ih9oc16kh3ph1", direction, seconds=0.005)
    assert {r.kernel for r in found.rungs} == {
        "reference", "direct_planes", "direct_channels", "implicit_gemm", "winograd",
    }  # fmt: skip
    assert sum(r.chosen for r in found.rungs) == 1
    flops = 2 * 2 * 16 * 16 * 9 * 81
    assert all(r.gflops == pytest.approx(flops / r.seconds / 1e9) for r in found.rungs)
    assert all(0 < r.error < 1e-4 or r.kernel == "reference" for r in found.rungs)
    assert re.search(r"winograd.*fewer products", str(found))
    found.plot()
