"""The operators, with the signatures of torch.nn.functional: `from pyconv import ops`."""

from pyconv.ops.batch_norm import batch_norm as batch_norm
from pyconv.ops.batch_norm import batch_norm_relu as batch_norm_relu
from pyconv.ops.conv2d import conv2d as conv2d
from pyconv.ops.conv2d import conv2d_fused as conv2d_fused
from pyconv.ops.conv2d import conv2d_pack as conv2d_pack
from pyconv.ops.conv2d import conv_transpose2d as conv_transpose2d
from pyconv.ops.pool2d import adaptive_avg_pool2d as adaptive_avg_pool2d
from pyconv.ops.pool2d import adaptive_max_pool2d as adaptive_max_pool2d
from pyconv.ops.pool2d import avg_pool2d as avg_pool2d
from pyconv.ops.pool2d import max_pool2d as max_pool2d
from pyconv.ops.pool2d import max_unpool2d as max_unpool2d
