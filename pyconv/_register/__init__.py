"""Registration of every operator with torch; the only caller of torch.ops.pyconv."""

from pyconv._register import avg_pool2d as avg_pool2d
from pyconv._register import batch_norm as batch_norm
from pyconv._register import batch_norm_relu as batch_norm_relu
from pyconv._register import conv2d as conv2d
from pyconv._register import pool2d as pool2d
