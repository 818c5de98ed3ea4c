"""
2. Padding, stride, channels, pooling
=====================================

What a convolution may do besides sliding by one pixel: each option on a small image, with the arithmetic, and a page
on which the window moves.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import pyconv
from pyconv import data, inspect, models, nn, ops

# %%
# Padding
# -------
# A kernel of 3 x 3 shrinks an image by two rows and two columns. A border of zeros, as wide as half the kernel, keeps
# its size: pixels at the border are then the middle of a window, too.

x = torch.arange(25.0).view(5, 5)
w = torch.tensor(
    [[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]
)  # Laplace's: zero where brightness grows evenly
assert inspect.apply_kernel(x, w).output.shape == (3, 3)
assert inspect.apply_kernel(x, w, padding=1).output.shape == (5, 5)
assert inspect.apply_kernel(x, w).output.abs().max() == 0

inspect.animate_conv(x, w, padding=1)

# %%
# Stride
# ------
# The window may jump. With a stride of two it stands at every second place, and the result has half the rows and half
# the columns: most networks shrink their images so.

strided = inspect.apply_kernel(x, w, stride=2, padding=1)
assert strided.output.shape == (3, 3)
assert torch.equal(strided.output, inspect.apply_kernel(x, w, padding=1).output[::2, ::2])

inspect.animate_conv(x, w, stride=2, padding=1)

# %%
# One step as a figure, and all of them as a GIF, for where no page can be shown:

sliding = inspect.animate_conv(x, w, stride=2, padding=1)
sliding.plot(number=5)
plt.show()
with tempfile.TemporaryDirectory() as folder:
    gif = sliding.save(Path(folder, "stride.gif"))
    print(f"{len(sliding)} frames, {gif.stat().st_size / 1e3:.0f} kB")

# %%
# One formula
# -----------
# With n pixels, a kernel of k, padding p, stride s and dilation d (a kernel of dilation d reads every d-th pixel, and
# so reaches over d * (k - 1) + 1 of them), there are
#
# .. mathmpl::
#    :fontsize: 13
#
#    \left\lfloor \frac{n + 2 p - d (k - 1) - 1}{s} \right\rfloor + 1
#
# outputs. Here is the formula beside the kernels, for many sizes.


def outputs(n, k, p, s, d):
    return (n + 2 * p - d * (k - 1) - 1) // s + 1


checked = 0
for n in (5, 6, 7, 28):
    for k in (1, 2, 3, 5):
        for p in (0, 1, 2):
            for s in (1, 2, 3):
                for d in (1, 2):
                    if outputs(n, k, p, s, d) >= 1:
                        y = ops.conv2d(
                            torch.zeros(1, 1, n, n), torch.zeros(1, 1, k, k), None, s, p, d
                        )
                        assert y.shape[2:] == (outputs(n, k, p, s, d),) * 2
                        checked += 1
print(f"{checked} sizes")

# %%
# Where the formula has no answer, the shape doctor says so, with the numbers in it and with what would do:

model = nn.Sequential(
    nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 8, 3, stride=2), nn.Conv2d(8, 2, 7)
)
try:
    inspect.check_shapes(model, torch.zeros(1, 1, 28, 28))
except pyconv.ShapeError as error:
    said = str(error)
print(said)
assert "padding=1 would work" in said

# %%
# Channels
# --------
# A kernel has a slice for each input channel, and sums over all of them: an output channel mixes everything at its
# place. Two channels in, three out, 2 * 3 kernels of 3 x 3, and a bias for each output:

x = torch.arange(50.0).view(2, 5, 5)
weight, bias = torch.randint(-1, 2, (3, 2, 3, 3)).float(), torch.tensor([0.0, 10, 20])
y = ops.conv2d(x[None], weight, bias)[0]
window = x[:, 1:4, 2:5]
assert y[1, 1, 2] == (window * weight[1]).sum() + 10
assert sum(p.numel() for p in nn.Conv2d(2, 3, 3).parameters()) == 3 * 2 * 3 * 3 + 3

inspect.animate_conv(x, weight, bias)

# %%
# Groups cut the channels into parts that do not meet. As many groups as channels, and each has a kernel of its own: a
# depthwise convolution.

depthwise = ops.conv2d(x[None], weight[:2, :1], groups=2)[0]
for channel in range(2):
    alone = ops.conv2d(x[None, channel : channel + 1], weight[channel : channel + 1, :1])[0, 0]
    assert torch.equal(depthwise[channel], alone)

# %%
# 1 x 1
# -----
# A kernel of one pixel sees no neighbours: it is a matrix that mixes the channels of each pixel. Followed by a
# depthwise convolution it does what a full one does, less exactly and with far fewer products.

mix = torch.randint(-3, 4, (4, 2, 1, 1)).float()
assert torch.equal(ops.conv2d(x[None], mix)[0], torch.einsum("oc,chw->ohw", mix[:, :, 0, 0], x))

full = inspect.summary(nn.Conv2d(64, 64, 3, padding=1), torch.zeros(1, 64, 28, 28), measure=False)
separable = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 64, 1))
parts = inspect.summary(separable, torch.zeros(1, 64, 28, 28), measure=False)
products = [sum(row.multiply_adds for row in table.rows) for table in (full, parts)]
print(f"{products[0]:,} products, or {products[1]:,}: {products[0] / products[1]:.1f} times fewer")
assert products == [64 * 64 * 9 * 28 * 28, 64 * 9 * 28 * 28 + 64 * 64 * 28 * 28]

# %%
# Pooling
# -------
# A window without weights: the largest value, or the mean. It has a stride as large as itself, usually, and forgets
# where exactly something was seen.

x = torch.tensor(
    [[1.0, 3, 2, 0, 1], [4, 2, 1, 5, 2], [0, 1, 7, 2, 2], [3, 6, 0, 1, 4], [2, 2, 1, 3, 0]]
)
assert ops.max_pool2d(x[None, None], 2)[0, 0].tolist() == [[4, 5], [6, 7]]
assert ops.avg_pool2d(x[None, None], 2)[0, 0].tolist() == [[2.5, 2], [2.5, 2.5]]

# %%
# Five columns, and a window of two stands there twice: the last column is lost. ``ceil_mode`` rounds up instead, and
# the last window hangs over the border.

rounded_up = ops.max_pool2d(x[None, None], 2, ceil_mode=True)[0, 0]
assert rounded_up.tolist() == [[4, 5, 2], [6, 7, 4], [2, 3, 0]]

inspect.animate_pool(x, 2, "max", ceil_mode=True)

# %%
# An average over such a window divides by the pixels that are there.

inspect.animate_pool(x, 2, "avg", ceil_mode=True)

# %%
# What a unit sees
# ----------------
# Layers on layers see more: each unit of LeNet-5's last pooling sees 16 x 16 pixels of the image, and its neighbours'
# four pixels further on. Inside, those in the middle count more: so says the gradient.

fields = inspect.receptive_field(models.LeNet5(variant="relu"), 28)
print(fields)
assert (fields["pool2"].size, fields["pool2"].jump) == ((16, 16), (4, 4))
fields.plot(image=data.load("mnist").train.images[12])
plt.show()
