"""The operators, with the signatures of torch.nn.functional: `from pyconv import ops`."""

from pyconv.ops.batch_norm import batch_norm as batch_norm
from pyconv.ops.conv2d import conv2d as conv2d
from pyconv.ops.conv2d import conv_transpose2d as conv_transpose2d
