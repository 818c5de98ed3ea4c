"""Which kernels an operator can choose from."""

from __future__ import annotations

from pyconv import _native

OPERATORS = (
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "conv_transpose2d",
    "max_pool2d",
    "max_unpool2d",
)


def algorithms(op: str) -> list[str]:
    """The names that `op` takes as `algorithm`, in the order they are asked, the reference last.

    The first whose kernel does not refuse the shape runs. conv_transpose2d runs conv2d's kernels.

    Raises:
        ValueError: no operator of pyconv.ops has this name.
    """
    if op not in OPERATORS:
        raise ValueError(
            f"algorithms: there is no operator {op!r}; there are {', '.join(OPERATORS)}"
        )
    if _native.lib is None:
        return ["reference"]
    return list(_native.lib.algorithms["conv2d" if op == "conv_transpose2d" else op])
