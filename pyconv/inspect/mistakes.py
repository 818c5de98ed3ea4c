"""Where a trained classifier errs: the confusion matrix and its worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from pyconv.inspect._extras import Shown, axes
from pyconv.inspect._walk import untouched
from pyconv.inspect.show import Pictures

_BATCH = 500


def _log_probabilities(model: Module, images: Tensor) -> Tensor:
    with untouched(model), torch.no_grad():
        logits = torch.cat([model(some).float() for some in images.split(_BATCH)])
    return logits.log_softmax(1)


@dataclass
class Confusion(Shown):
    """matrix[i, j]: how many images of class i were taken for class j."""

    matrix: Tensor
    names: list[str]

    @property
    def accuracy(self) -> float:
        return self.matrix.trace().item() / self.matrix.sum().item()

    def most_confused(self, most: int = 10) -> list[tuple[str, str, int]]:
        """(class, taken for, how often), the most frequent first."""
        wrong = self.matrix - self.matrix.diag().diag()
        counts, order = wrong.flatten().sort(descending=True, stable=True)
        pairs = [divmod(int(at), len(wrong)) for at in order[: int((counts[:most] > 0).sum())]]
        return [(self.names[i], self.names[j], int(wrong[i, j])) for i, j in pairs]

    def plot(self, ax: Any = None) -> Any:
        """Counts, coloured by their share of the class; returns the axes."""
        count = len(self.names)
        ax = axes(ax, figsize=(1.6 + 0.45 * count, 1.4 + 0.42 * count))
        share = self.matrix / self.matrix.sum(1, keepdim=True).clamp_min(1)
        ax.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
        for i in range(count):
            for j in range(count):
                if self.matrix[i, j]:
                    color = "white" if share[i, j] > 0.5 else "black"
                    text = str(int(self.matrix[i, j]))
                    ax.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
        turn = 90 if max(map(len, self.names)) > 3 else 0
        ax.set_xticks(range(count), self.names, rotation=turn)
        ax.set_yticks(range(count), self.names)
        ax.set(xlabel="taken for", ylabel="is", title=f"accuracy {self.accuracy:.2%}")
        return ax


def confusion_matrix(
    model: Module, images: Tensor, labels: Tensor, names: Sequence[str] | None = None
) -> Confusion:
    """Counts what each class was taken for; the model runs in evaluation mode and stays as it was.

    Args:
        images: (N, C, H, W); labels: (N,).
        names: of the classes, default their numbers.

    >>> from pyconv import inspect
    >>> import torch
    >>> model = torch.nn.Flatten()  # its outputs are the logits
    >>> logits = torch.eye(3)[[0, 1, 1, 2]].view(4, 3, 1, 1)
    >>> found = inspect.confusion_matrix(model, logits, torch.tensor([0, 1, 2, 2]))
    >>> found.matrix.tolist(), found.accuracy
    ([[1, 0, 0], [0, 1, 0], [0, 1, 1]], 0.75)
    >>> found.most_confused()
    [('2', '1', 1)]
    """
    scores = _log_probabilities(model, images)
    classes = scores.shape[1]
    labels = labels.to(scores.device)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=scores.device)
    matrix.view(-1).index_add_(0, labels * classes + scores.argmax(1), torch.ones_like(labels))
    return Confusion(matrix.cpu(), list(names) if names else [str(i) for i in range(classes)])


@dataclass
class Mistakes(Pictures):
    """The images with the largest loss that were taken for another class."""

    indices: Tensor | None = None
    losses: Tensor | None = None
    predicted: Tensor | None = None


def worst_mistakes(
    model: Module,
    images: Tensor,
    labels: Tensor,
    most: int = 12,
    names: Sequence[str] | None = None,
) -> Mistakes:
    """The images that were classified wrongly with the largest cross-entropy, worst first.

    Titles say what each was taken for, what it is, its loss, and the probability of the wrong class.

    >>> from pyconv import inspect
    >>> import torch
    >>> logits = 9 * torch.eye(3)[[0, 1, 1, 2]].view(4, 3, 1, 1)
    >>> found = inspect.worst_mistakes(torch.nn.Flatten(), logits, torch.tensor([0, 1, 2, 2]))
    >>> found.indices.tolist(), found.predicted.tolist()
    ([2], [1])
    """
    scores = _log_probabilities(model, images).cpu()
    labels = labels.cpu()
    predicted = scores.argmax(1)
    losses = -scores.gather(1, labels[:, None])[:, 0]
    wrong = (predicted != labels).nonzero().flatten()
    wrong = wrong[losses[wrong].argsort(descending=True, stable=True)][:most]
    called = list(names) if names else [str(i) for i in range(scores.shape[1])]
    titles = [
        f"{called[predicted[i]]}, is {called[labels[i]]}\n{losses[i]:.1f}, {scores[i].max().exp():.0%}"
        for i in wrong.tolist()
    ]
    pictures = images[wrong.to(images.device)].detach().float().cpu()
    color = pictures.permute(0, 2, 3, 1).clamp(0, 1) if pictures.shape[1] == 3 else None
    return Mistakes(
        pictures.mean(1), titles, 6, suptitle="taken for, what it is; loss, probability", color=color,
        indices=wrong, losses=losses[wrong], predicted=predicted[wrong],
    )  # fmt: skip
