"""The operators in plain PyTorch, one screen each: read this before the C++.

Every function has the signature of the raw operator it mirrors (csrc/bindings.cpp) and says the
same sum as the reference kernel of that name. They are differentiable, run on any device and any
dtype, and stand in where the compiled half cannot be loaded.
"""

from pyconv.reference.batch_norm import batch_norm_eval as batch_norm_eval
from pyconv.reference.batch_norm import batch_norm_eval_bwd as batch_norm_eval_bwd
from pyconv.reference.batch_norm import batch_norm_train as batch_norm_train
from pyconv.reference.batch_norm import batch_norm_train_bwd as batch_norm_train_bwd
from pyconv.reference.batch_norm_relu import batch_norm_relu_eval as batch_norm_relu_eval
from pyconv.reference.batch_norm_relu import batch_norm_relu_eval_bwd as batch_norm_relu_eval_bwd
from pyconv.reference.batch_norm_relu import batch_norm_relu_train as batch_norm_relu_train
from pyconv.reference.batch_norm_relu import batch_norm_relu_train_bwd as batch_norm_relu_train_bwd
from pyconv.reference.conv2d import conv2d as conv2d
from pyconv.reference.conv2d import conv2d_bwd_input as conv2d_bwd_input
from pyconv.reference.conv2d import conv2d_bwd_weight as conv2d_bwd_weight
from pyconv.reference.conv2d import conv2d_fused as conv2d_fused
from pyconv.reference.pool2d import adaptive_avg_pool2d as adaptive_avg_pool2d
from pyconv.reference.pool2d import adaptive_avg_pool2d_bwd as adaptive_avg_pool2d_bwd
from pyconv.reference.pool2d import adaptive_max_pool2d as adaptive_max_pool2d
from pyconv.reference.pool2d import adaptive_max_pool2d_bwd as adaptive_max_pool2d_bwd
from pyconv.reference.pool2d import avg_pool2d as avg_pool2d
from pyconv.reference.pool2d import avg_pool2d_bwd as avg_pool2d_bwd
from pyconv.reference.pool2d import max_pool2d as max_pool2d
from pyconv.reference.pool2d import max_pool2d_bwd as max_pool2d_bwd
from pyconv.reference.pool2d import max_pool2d_taps as max_pool2d_taps
from pyconv.reference.pool2d import max_pool2d_taps_bwd as max_pool2d_taps_bwd
from pyconv.reference.pool2d import max_unpool2d as max_unpool2d
from pyconv.reference.pool2d import max_unpool2d_bwd as max_unpool2d_bwd
