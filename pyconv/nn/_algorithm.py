"""The one attribute our layers have beyond torch's."""

from __future__ import annotations

from torch.nn import Module


class AlgorithmMixin(Module):
    """`algorithm`: a kernel's name, or None to let the list choose; printed only where it is set.

    A class attribute until somebody sets it, so that a layer of torch becomes ours by its class
    alone, and its state_dict and pickle are the same either way.
    """

    algorithm: str | None = None

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.algorithm is None else f"{text}, algorithm={self.algorithm!r}"
