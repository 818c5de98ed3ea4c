"""What a run is made of: defaults, what each model prefers, named recipes, and the checks.

A setting is the first of: the flag, the checkpoint's (with --resume), the recipe's, the model's,
the default. All of them decide the result, so all of them are in the checkpoint.
"""

from __future__ import annotations

from typing import Any

from pyconv import data

Settings = dict[str, Any]

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "one-cycle")
INITS = ("default", "xavier", "kaiming")
LAYERS = ("pyconv", "torch")
AUTOCAST = ("bf16", "fp16")

DEFAULTS: Settings = {
    "model": "lenet5",
    "layers": "pyconv",
    "data": "fashion-mnist",
    "classes": None,
    "normalize": False,
    "epochs": 5,
    "batch_size": 256,
    "drop_last": False,
    "optimizer": "adam",
    "lr": 1e-3,
    "momentum": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "schedule": "constant",
    "init": "default",
    "channels_last": False,
    "autocast": None,
    "sync_bn": False,
    "seed": 0,
}

# The fastai course: its Adam (decoupled weight decay), and images normalised by the training set.
_FASTAI = {"optimizer": "adamw", "beta2": 0.99, "eps": 1e-5, "weight_decay": 0.01}
_DIGITS = {"data": "mnist", "normalize": True, "epochs": 1, "batch_size": 512, **_FASTAI}
_DIGITS |= {"lr": 0.06, "schedule": "one-cycle"}
_RESNET = {"normalize": True, "optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4}
_RESNET |= {"batch_size": 128, "schedule": "one-cycle", "drop_last": True}

MODEL_DEFAULTS: dict[str, Settings] = {
    "lenet5": {"init": "xavier"},
    "lenet5_relu": {"init": "xavier"},
    "simple_cnn_3v7": {
        "data": "mnist",
        "classes": (3, 7),
        "epochs": 2,
        "batch_size": 64,
        "lr": 0.01,
        "schedule": "one-cycle",
        **_FASTAI,
    },
    "simple_cnn": _DIGITS,
    "simple_cnn_bn": _DIGITS,
    "resnet18": _RESNET,
    "resnet18_small": _RESNET,
    "resnet20": _RESNET,
}

# The experiments of fastai chapter 13 in its order, and LeNet-5 as Dive into Deep Learning has it.
RECIPES: dict[str, Settings] = {
    "lenet": {"model": "lenet5"},
    "chapter-3v7": {"model": "simple_cnn_3v7"},
    "chapter-constant": {"model": "simple_cnn", "schedule": "constant", "batch_size": 64},
    "chapter-one-cycle": {"model": "simple_cnn"},
    "chapter-batch-norm": {"model": "simple_cnn_bn"},
    "chapter-five-epochs": {"model": "simple_cnn_bn", "epochs": 5, "lr": 0.1},
}


class UsageError(Exception):
    """The flags ask for something impossible; the message is one sentence."""


def resolve(flags: Settings, saved: Settings | None = None, recipe: str | None = None) -> Settings:
    """Return all settings, each from the first source that has it.

    Args:
        flags: what the command line names.
        saved: the settings in the checkpoint of a run to resume.
        recipe: a name in `RECIPES`.

    Raises:
        UsageError: a flag contradicts the checkpoint, or a setting is impossible by itself.
    """
    asked = {**(RECIPES[recipe] if recipe else {}), **flags}
    if saved is not None:
        for key, value in asked.items():
            if saved[key] != value and not (key == "epochs" and _extends(saved, value)):
                raise UsageError(
                    f"{flag(key)} is {show(value)} but the run to resume has {show(saved[key])}: "
                    "leave the flag out, or start afresh without --resume"
                )
        settings = {**saved, **asked}
    else:
        settings = {**DEFAULTS, **MODEL_DEFAULTS[{**DEFAULTS, **asked}["model"]], **asked}
    _check(settings, flags)
    return settings


def _extends(saved: Settings, epochs: int) -> bool:
    """Whether a run may be resumed for more epochs: a constant schedule does not plan its end."""
    return saved["schedule"] == "constant" and epochs > saved["epochs"]


def _check(settings: Settings, flags: Settings) -> None:
    """Refuse values that are impossible whatever the data and the machine are."""
    for key, low in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
        if settings[key] < low:
            raise UsageError(f"{flag(key)} must be at least {low}, got {settings[key]}")
    for key in ("lr", "eps"):
        if not settings[key] > 0:
            raise UsageError(f"{flag(key)} must be positive, got {settings[key]}")
    for key in ("momentum", "beta2"):
        if not 0 <= settings[key] < 1:
            raise UsageError(f"{flag(key)} must be in [0, 1), got {settings[key]}")
    if settings["weight_decay"] < 0:
        raise UsageError(f"--weight-decay must not be negative, got {settings['weight_decay']}")
    if settings["schedule"] == "one-cycle" and "momentum" in flags:
        raise UsageError(
            "--momentum has no effect with --schedule one-cycle, which moves the momentum itself "
            "(0.95 to 0.85 and back): leave one of the two out"
        )
    if settings["optimizer"] == "sgd" and flags.keys() & {"beta2", "eps"}:
        raise UsageError("--beta2 and --eps belong to adam and adamw, not to --optimizer sgd")
    classes = settings["classes"]
    if classes is not None and (
        len(classes) < 2
        or len(set(classes)) < len(classes)
        or not set(classes) <= set(range(data.NUM_CLASSES))
    ):
        raise UsageError(
            f"--classes must be two or more different labels from 0 to {data.NUM_CLASSES - 1}, "
            f"such as 3,7, got {show(classes)}"
        )


def flag(key: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + key.replace("_", "-")


def show(value: Any) -> str:
    """Return a setting's value as it is typed on the command line."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if value is None:
        return "not given"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
