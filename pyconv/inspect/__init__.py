"""Seeing what a network is and does: tables, statistics, figures and pages, each from numbers you can have.

    from pyconv import inspect

    print(inspect.summary(model, x))          # layers: sizes, cost, kernel, share of the roofline
    with inspect.ActivationStats(model) as stats: ...
    stats.color_dim(0)
    inspect.explorer(model, image, "out.html")

Every function returns data with a `plot`, or pages to `save`; those called `show_...` draw at once. Models
may have layers of torch.nn or of pyconv.nn, and stay as they were. Plots need matplotlib, coloured tables
rich: pip install 'pyconv[inspect]'.
"""

from .activations import ActivationStats
from .animate import animate_conv, animate_pool
from .doctor import check_shapes, shape_doctor
from .explorer import explorer
from .ladder import ladder
from .matrix import apply_kernel, conv_as_matrix
from .mistakes import confusion_matrix, worst_mistakes
from .receptive import receptive_field
from .show import show_channels, show_feature_maps, show_filters
from .summary import profile, summary
from .training import Recorder, lr_find, schedule
from .windows import im2col, show_im2col
from .winograd import show_winograd_tiles, winograd_tiles

__all__ = [
    "ActivationStats",
    "Recorder",
    "animate_conv",
    "animate_pool",
    "apply_kernel",
    "check_shapes",
    "confusion_matrix",
    "conv_as_matrix",
    "explorer",
    "im2col",
    "ladder",
    "lr_find",
    "profile",
    "receptive_field",
    "schedule",
    "shape_doctor",
    "show_channels",
    "show_feature_maps",
    "show_filters",
    "show_im2col",
    "show_winograd_tiles",
    "summary",
    "winograd_tiles",
    "worst_mistakes",
]
