"""The training loop: determinism, exact resume, optimisers and schedules, and that it learns."""

import copy
import io
import math

import pytest
import torch

from pyconv import data, models
from pyconv.train import RECIPES, Run, UsageError, checkpoint, optim, resolve
from pyconv.train.settings import DEFAULTS, MODEL_DEFAULTS

CPU = torch.device("cpu")


class Stop(Exception):
    """Raised after a step, as the command line does when a signal has arrived."""


@pytest.fixture(scope="module")
def digits():
    """200 training and 100 test images of ten digits."""
    full = data.load("mnist")
    train, test = full.train, full.test
    return full._replace(
        train=data.Split(train.images[:200], train.labels[:200]),
        test=data.Split(test.images[:100], test.labels[:100]),
    )


def make(digits, **flags):
    small = {"model": "lenet5_relu", "layers": "torch", "epochs": 3, "batch_size": 30}
    return Run(resolve({**small, **flags}), digits, CPU)


def finish(run, after_step=lambda: None):
    while not run.finished():
        run.train_epoch(after_step)
    return run


def stop_at(run, total_steps):
    """Return a callback that stops the run after so many steps in all."""

    def after_step():
        if run.epoch * run.steps + run.step == total_steps:
            raise Stop

    return after_step


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_bits(run, expected):
    state, wanted = run.module.state_dict(), expected.module.state_dict()
    assert state.keys() == wanted.keys()
    for key in state:
        assert torch.equal(state[key], wanted[key]), key
    timing = {"seconds", "images_per_second"}
    for row, wanted_row in zip(run.history, expected.history, strict=True):
        assert {k: v for k, v in row.items() if k not in timing} == {
            k: v for k, v in wanted_row.items() if k not in timing
        }


def test_same_seed_same_bits_other_seed_other_bits(digits):
    run = finish(make(digits, seed=5))
    assert_same_bits(finish(make(digits, seed=5)), run)
    other = finish(make(digits, seed=6))
    assert not torch.equal(other.module.fc3.weight, run.module.fc3.weight)


def test_our_layers_give_the_same_bits_on_any_number_of_threads(digits):
    """The model has nothing but them: no linear layer of torch's."""
    flags = {"model": "simple_cnn_bn", "layers": "pyconv", "epochs": 1}
    one = finish(make(digits, **flags))
    torch.set_num_threads(2)
    assert_same_bits(finish(make(digits, **flags)), one)


RESUMED = {
    "adam": {},
    "sgd, one-cycle": {"optimizer": "sgd", "lr": 0.1, "schedule": "one-cycle"},
    "adamw, one-cycle, batch norm": {"model": "simple_cnn_bn"},
    "channels_last": {"channels_last": True, "optimizer": "sgd", "lr": 0.05},
    "bf16": {"autocast": "bf16"},
    "fp16": {"autocast": "fp16", "optimizer": "sgd", "lr": 0.01},
    "our layers": {"layers": "pyconv"},
    "our layers, batch norm": {"layers": "pyconv", "model": "simple_cnn_bn"},
    "our layers, NHWC": {"layers": "pyconv", "model": "simple_cnn_bn", "channels_last": True},
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("case", RESUMED)
def test_resume_at_any_step_ends_with_the_same_bits(digits, case):
    """Stopped after the first step, inside an epoch, at its last step, and at the run's last."""
    flags = RESUMED[case]
    expected = finish(make(digits, batch_size=50, epochs=2, **flags))
    assert expected.steps == 4
    for total_steps in (1, 2, 4, 5, 8):
        run = make(digits, batch_size=50, epochs=2, **flags)
        with pytest.raises(Stop):
            finish(run, stop_at(run, total_steps))
        state = through_a_file(run.state_dict())
        torch.manual_seed(total_steps)  # the generator's state, too, comes from the file
        resumed = make(digits, batch_size=50, epochs=2, **flags)
        resumed.load_state_dict(state)
        assert_same_bits(finish(resumed), expected)


def test_resume_restores_the_random_generator(digits):
    run = make(digits)
    state = through_a_file(run.state_dict())
    drawn = torch.rand(3)
    other = make(digits)
    torch.manual_seed(99)
    other.load_state_dict(state)
    assert torch.equal(torch.rand(3), drawn)


def test_resume_refuses_other_images(digits):
    state = make(digits).state_dict()
    with pytest.raises(data.DataError, match=r"not the images the run to resume was trained on"):
        make(digits._replace(fingerprint=1)).load_state_dict(state)


def test_metrics_are_means_over_the_images_as_trained_on(digits):
    """With a vanishing learning rate, the loss of the initial model, short last batch and all."""
    run = make(digits, epochs=1, batch_size=30, lr=1e-30, optimizer="sgd")
    model = copy.deepcopy(run.module)
    row = run.train_epoch()
    logits = model(digits.train.images)
    loss = torch.nn.functional.cross_entropy(logits, digits.train.labels)
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["train_accuracy"] == (logits.argmax(1) == digits.train.labels).float().mean()
    hits = model(digits.test.images).argmax(1) == digits.test.labels
    assert row["test_accuracy"] == pytest.approx(hits.float().mean().item())
    assert row["images_per_second"] == pytest.approx(200 / row["seconds"])


def test_an_epoch_sees_every_image_once_in_another_order(digits, monkeypatch):
    run = make(digits, epochs=2)
    seen = []
    monkeypatch.setattr(run, "_train_step", lambda batch: seen.append(batch))
    run.train_epoch()
    first, seen[:] = torch.cat(seen), []
    run.train_epoch()
    second = torch.cat(seen)
    assert [len(batch) for batch in seen] == [30] * 6 + [20]
    assert first.sort().values.tolist() == second.sort().values.tolist() == [*range(200)]
    assert not torch.equal(first, second)


def test_drop_last_leaves_out_the_short_batch(digits):
    run = make(digits, epochs=1, drop_last=True)
    assert run.steps == 6
    row = run.train_epoch()
    assert row["images_per_second"] == pytest.approx(180 / row["seconds"])


def test_batches_that_cannot_be_trained_on_are_refused(digits):
    with pytest.raises(UsageError, match=r"batch norm needs two images or more.* a batch of 1 "):
        make(digits, model="simple_cnn_bn", batch_size=199)
    make(digits, model="simple_cnn_bn", batch_size=199, drop_last=True, schedule="constant")
    with pytest.raises(UsageError, match="--batch-size 300 leaves no batch of 200 images"):
        make(digits, batch_size=300, drop_last=True)
    with pytest.raises(UsageError, match="one-cycle needs 5 steps or more, this run has 4"):
        make(digits, batch_size=50, epochs=1, schedule="one-cycle")


def test_one_cycle_is_fastais(digits):
    """Against the closed form: cosines from lr/25 over lr to lr/1e5, momentum the other way."""
    steps, lr = 41, 0.06
    model = torch.nn.Linear(1, 1)
    settings = resolve({"model": "simple_cnn", "lr": lr})
    optimizer = optim.optimizer(model, settings)
    schedule = optim.schedule(optimizer, settings, steps)
    top = 0.25 * steps - 1  # the step at which the learning rate is highest

    def cosine(start, end, part):
        return end + (start - end) * (1 + math.cos(math.pi * part)) / 2

    for step in range(steps):
        up, down = step / top, (step - top) / (steps - 1 - top)
        want = cosine(lr / 25, lr, up) if step <= top else cosine(lr, lr / 1e5, down)
        momentum = cosine(0.95, 0.85, up) if step <= top else cosine(0.85, 0.95, down)
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(want, rel=1e-6)
        assert group["betas"] == pytest.approx((momentum, 0.99))
        optimizer.step()
        schedule.step()


def test_optimizers_get_their_settings():
    def group(**flags):
        return optim.optimizer(torch.nn.Linear(1, 1), resolve(flags)).param_groups[0]

    sgd = group(optimizer="sgd", lr=0.3, momentum=0.8, weight_decay=0.01)
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.3, 0.8, 0.01)
    adam = group(lr=0.3, momentum=0.8, beta2=0.9, eps=1e-4)
    assert (adam["lr"], adam["betas"], adam["eps"]) == (0.3, (0.8, 0.9), 1e-4)
    assert not adam["decoupled_weight_decay"]
    adamw = group(optimizer="adamw", weight_decay=0.02)
    assert adamw["decoupled_weight_decay"]
    assert adamw["weight_decay"] == 0.02


@torch.no_grad()
def test_initial_weights():
    """Xavier: uniform within sqrt(6 / (fan in + fan out)); Kaiming: deviation sqrt(2 / fan in)."""
    torch.manual_seed(0)
    model = models.build("lenet5", nn=torch.nn)
    before = copy.deepcopy(model.state_dict())
    optim.initialize(model, "default")
    assert torch.equal(model.fc1.weight, before["fc1.weight"])
    optim.initialize(model, "xavier")
    for weight, fans in ((model.fc1.weight, 400 + 120), (model.conv2.weight, 25 * (6 + 16))):
        bound = math.sqrt(6 / fans)
        assert weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    optim.initialize(model, "kaiming")
    assert model.fc1.weight.std() == pytest.approx(math.sqrt(2 / 400), rel=0.05)
    assert model.conv2.weight.std() == pytest.approx(math.sqrt(2 / 150), rel=0.05)
    assert torch.equal(model.fc1.bias, before["fc1.bias"])


def test_settings_come_from_flag_recipe_model_default():
    assert resolve({}) == {**DEFAULTS, **MODEL_DEFAULTS["lenet5"]}
    settings = resolve({"seed": 3}, recipe="chapter-constant")
    assert settings["seed"] == 3
    assert settings["schedule"] == "constant"  # the recipe's
    assert settings["optimizer"] == "adamw"  # the model's
    assert settings["init"] == "default"
    assert resolve({"epochs": 9}, recipe="chapter-five-epochs")["epochs"] == 9


def test_every_model_and_recipe_resolves():
    assert MODEL_DEFAULTS.keys() == set(models.names())
    for model in models.names():
        assert resolve({"model": model})["model"] == model
    for recipe in RECIPES:
        assert resolve({}, recipe=recipe).keys() == DEFAULTS.keys()


def test_resumed_settings_must_agree_but_epochs_may_grow():
    saved = resolve({"lr": 0.5})
    assert resolve({}, saved) == saved
    assert resolve({"lr": 0.5}, saved) == saved
    with pytest.raises(UsageError, match=r"--lr is 0\.25 but the run to resume has 0\.5: leave"):
        resolve({"lr": 0.25}, saved)
    assert resolve({"epochs": 8}, saved)["epochs"] == 8
    with pytest.raises(UsageError, match="--epochs is 2 but the run to resume has 5"):
        resolve({"epochs": 2}, saved)
    with pytest.raises(UsageError, match="--epochs is 8 but the run to resume has 1"):
        resolve({"epochs": 8}, resolve({"model": "simple_cnn"}))


IMPOSSIBLE = [
    ({"epochs": 0}, "--epochs must be at least 1, got 0"),
    ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
    ({"seed": -1}, "--seed must be at least 0, got -1"),
    ({"lr": 0.0}, "--lr must be positive, got 0.0"),
    ({"lr": math.nan}, "--lr must be positive, got nan"),
    ({"momentum": 1.0}, r"--momentum must be in \[0, 1\), got 1.0"),
    ({"weight_decay": -1.0}, "--weight-decay must not be negative, got -1.0"),
    ({"schedule": "one-cycle", "momentum": 0.9}, "--momentum has no effect with --schedule one-c"),
    ({"optimizer": "sgd", "beta2": 0.9}, "--beta2 and --eps belong to adam"),
    ({"classes": (3,)}, "--classes must be two or more different labels.* got 3"),
    ({"classes": (3, 3)}, "--classes must be two or more different labels.* got 3,3"),
    ({"classes": (3, 10)}, "--classes must be two or more different labels.* got 3,10"),
]


@pytest.mark.parametrize(("flags", "sentence"), IMPOSSIBLE)
def test_impossible_settings_are_one_sentence(flags, sentence):
    with pytest.raises(UsageError, match=sentence):
        resolve(flags)


def test_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"format": checkpoint.FORMAT, "epoch": 1}, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(data.DataError, match=r"cannot be written: No space left on device"):
            checkpoint.save({"format": checkpoint.FORMAT, "epoch": 2}, path)
    assert checkpoint.load(path)["epoch"] == 1
    checkpoint.save({"format": checkpoint.FORMAT, "epoch": 3}, path)
    assert checkpoint.load(path)["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


class Payload:
    """Code that a careless loader would run."""

    def __reduce__(self):
        return (pytest.fail, ("the checkpoint ran code",))


def test_checkpoint_that_is_none(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(data.DataError, match="no such file, so there is no run to resume"):
        checkpoint.load(path)
    path.write_bytes(b"")
    with pytest.raises(data.DataError, match="damaged, or not a checkpoint"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "payload": Payload()}, path)
    with pytest.raises(data.DataError, match="damaged, or not a checkpoint"):
        checkpoint.load(path)
    checkpoint.save({"format": checkpoint.FORMAT, "weights": torch.zeros(5000)}, path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(data.DataError, match="damaged, or not a checkpoint"):
        checkpoint.load(path)
    torch.save({"weights": torch.zeros(5)}, path)
    with pytest.raises(data.DataError, match="not a checkpoint of pyconv train"):
        checkpoint.load(path)
    torch.save({"format": 0}, path)
    with pytest.raises(data.DataError, match="checkpoint format 0, expected 1"):
        checkpoint.load(path)


@pytest.mark.parametrize("layers", ["pyconv", "torch"])
def test_threes_and_sevens_are_learned_in_two_epochs(layers):
    """On 2,000 embedded images; 0.953 to 0.973 measured with torch.nn, seeds 0 to 4."""
    threes_and_sevens = data.load("mnist", classes=(3, 7))
    settings = resolve({"layers": layers}, recipe="chapter-3v7")
    run = finish(Run(settings, threes_and_sevens, CPU))
    assert run.history[-1]["test_accuracy"] > 0.93


@pytest.mark.parametrize("model", ["lenet5", "lenet5_relu", "simple_cnn_bn"])
def test_the_twin_takes_the_same_path(digits, model):
    """Same seed, same batches: after a few steps the losses differ by rounding alone."""
    flags = {"model": model, "epochs": 2, "batch_size": 50, "optimizer": "sgd", "lr": 0.01}
    flags |= {"schedule": "constant"}
    ours = finish(make(digits, **flags, layers="pyconv"))
    twin = finish(make(digits, **flags))
    for row, wanted in zip(ours.history, twin.history, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
