"""The training loop behind ``python -m pyconv train``.

    from pyconv.train import Run, resolve
    run = Run(resolve({"model": "lenet5"}), pyconv.data.load("fashion-mnist"), torch.device("cpu"))
    while not run.finished():
        print(run.train_epoch())

A run can stop after any step and go on to the same bits: `Run.state_dict` is all that it needs.
"""

from .run import Run
from .settings import RECIPES, UsageError, resolve

__all__ = ["RECIPES", "Run", "UsageError", "resolve"]
