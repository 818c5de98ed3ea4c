"""The layer namespace the models default to."""

from __future__ import annotations

from types import ModuleType


def resolve(nn: ModuleType | None) -> ModuleType:
    """Return ``nn``, or `pyconv.nn` when it is None.

    `pyconv.nn` is imported here and not at the top, so that the torch twin of a model,
    ``LeNet5(nn=torch.nn)``, can be built where the compiled extension is missing.
    """
    if nn is not None:
        return nn
    import pyconv.nn

    return pyconv.nn
