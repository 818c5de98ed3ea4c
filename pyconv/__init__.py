"""pyconv: hand-written convolution, pooling and batch-norm kernels for PyTorch.

    from pyconv import ops                  # ops.conv2d(x, w), as torch.nn.functional
    import pyconv.nn as nn                  # nn.Conv2d(3, 64, 3), as torch.nn
    pyconv.convert(model)                   # swap the layers of a model you already have
    pyconv.fuse(model.eval())               # a copy for inference: one layer for conv + norm + ReLU
    pyconv.prepack(model)                   # keep weights in the order in which kernels read them
    with pyconv.override_torch(): ...       # route torch.nn.functional's calls
    pyconv.grad.conv2d_weight(x, size, dy)  # the gradients as functions, as torch.nn.grad
    pyconv.algorithms("conv2d")             # what can run; algorithm="name" forces one
    pyconv.explain(layer, x, measure=True)  # what does run, why, and how far from the roof
    with pyconv.cuda_emulator(): ...        # the CUDA kernels, on CPU tensors, without a GPU
    from pyconv import lab                  # and a CUDA kernel of your own: run, judged, watched
    from pyconv import inspect              # what a network is and does: tables, figures, pages

To see how it works, read pyconv/reference first: the same sums in plain PyTorch.
"""

from pyconv import _native as _native
from pyconv import backends as backends
from pyconv import grad as grad
from pyconv import nn as nn
from pyconv import ops as ops
from pyconv._emulator import cuda_emulator as cuda_emulator
from pyconv._explain import explain as explain
from pyconv._shapes import ShapeError as ShapeError
from pyconv.convert import convert as convert
from pyconv.convert import revert as revert
from pyconv.fuse import fuse as fuse
from pyconv.ops._algorithms import algorithms as algorithms
from pyconv.override import override_torch as override_torch
from pyconv.prepack import prepack as prepack
