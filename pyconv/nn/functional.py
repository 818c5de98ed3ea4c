"""torch.nn.functional, with the names of pyconv.ops running on pyconv's kernels.

import pyconv.nn.functional as F
"""

# ruff: noqa: F403, I001
# Ours twice, for the reason told in pyconv/nn/__init__.py.
from pyconv.nn._functions import *
from torch.nn.functional import *  # type: ignore[assignment]
from pyconv.nn._functions import *
