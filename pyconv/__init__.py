"""pyconv: hand-written convolution, pooling and batch-norm kernels for PyTorch.

    from pyconv import ops                     # ops.conv2d(x, w), as torch.nn.functional
    import pyconv.nn as nn                     # nn.Conv2d(3, 64, 3), as torch.nn
    pyconv.convert(model)                      # swap the layers of a model you already have
    pyconv.algorithms("conv2d")                # what can run; algorithm="name" forces one
"""

from pyconv import _native as _native
from pyconv import ops as ops
from pyconv._shapes import ShapeError as ShapeError
