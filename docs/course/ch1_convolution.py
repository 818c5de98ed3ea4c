"""
1. What a convolution is
========================

A kernel of nine numbers slides over an image. At each place it multiplies what it covers, sums, and the sums are a new
image. Everything else in this course follows from that sentence.
"""

import time

import matplotlib.pyplot as plt
import torch

from pyconv import data, inspect, ops

# %%
# One digit
# ---------
# The thirteenth image of MNIST's training set is the three of the course: 28 x 28 pixels from 0 to 255.

digits = data.load("mnist")
three = digits.train.images[12, 0] * 255  # (28, 28)
assert digits.train.labels[12] == 3
print(three[4:11, 5:19].int())

# %%
# One window
# ----------
# A kernel that finds top edges: it subtracts the row above from the row below.

top_edge = torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]])
window = three[4:7, 6:9]
print(window * top_edge)
print((window * top_edge).sum())
assert (window * top_edge).sum() == 762

# %%
# The digit's top edge passes through there, dark above and bright below, and the sum is large: 762. Further down and
# to the right, where the stroke is as bright above as below, little is left: -29.

assert (three[7:10, 17:20] * top_edge).sum() == -29

# %%
# Every window
# ------------
# The same at every place, written as the two loops that it is. A kernel of 3 x 3 fits 26 times along 28 pixels.


def slide(image, kernel):
    height, width = image.shape[0] - 2, image.shape[1] - 2
    result = torch.empty(height, width)
    for row in range(height):
        for column in range(width):
            result[row, column] = (image[row : row + 3, column : column + 3] * kernel).sum()
    return result


began = time.perf_counter()
by_hand = slide(three, top_edge)
seconds = time.perf_counter() - began
print(by_hand.shape)
assert by_hand.shape == (26, 26)
assert by_hand[4, 6] == 762
assert by_hand[7, 17] == -29

# %%
# ``inspect.apply_kernel`` is the same, on pyconv's kernels, and remembers the windows. Pixels are whole numbers, so
# that the results agree to the last bit.

edges = inspect.apply_kernel(three, top_edge)
assert torch.equal(edges.output, by_hand)
edges.plot(at=(4, 6))
plt.show()

# %%
# Blue is what grows brighter downwards, a top edge; red is what grows darker, a bottom edge. A kernel turned on its
# side finds left edges.

left_edge = top_edge.T
inspect.apply_kernel(three, left_edge).plot()
plt.show()

# %%
# Four kernels, sixty-four images
# -------------------------------
# A convolution in a network is many kernels over many images at once. Weights have the shape (output channels, input
# channels, height, width), images (batch, channels, height, width).

diagonal_1 = torch.tensor([[0.0, -1, 1], [-1, 1, 0], [1, 0, 0]])
diagonal_2 = torch.tensor([[1.0, -1, 0], [0, 1, -1], [0, 0, 1]])
weight = torch.stack([left_edge, top_edge, diagonal_1, diagonal_2])[:, None]  # (4, 1, 3, 3)
batch = data.load("mnist", classes=(3, 7)).train.images[:64] * 255  # (64, 1, 28, 28)

features = ops.conv2d(batch, weight)
print(features.shape)
assert features.shape == (64, 4, 26, 26)

for image in (0, 31, 63):
    for channel in range(4):
        assert torch.equal(features[image, channel], slide(batch[image, 0], weight[channel, 0]))

titles = ["image", "left edges", "top edges", "diagonal, rising", "diagonal, falling"]
_, axes = plt.subplots(3, 5, figsize=(9, 5.4), layout="constrained")
for row, image in zip(axes, (0, 1, 63)):
    limit = features[image].abs().max()
    row[0].imshow(batch[image, 0].numpy(), cmap="gray")
    for ax, picture in zip(row[1:], features[image]):
        ax.imshow(picture.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
    for ax in row:
        ax.axis("off")
for ax, title in zip(axes[0], titles):
    ax.set_title(title, fontsize=9)
plt.show()

# %%
# What it costs
# -------------
# Each of the 64 * 4 * 26 * 26 outputs is nine products and their sum. The loops above made one channel of one image;
# here is how long they would have taken for all, and how long the kernel takes.

outputs = features.numel()
assert outputs == 173_056
loops = seconds * 64 * 4
times = []
for _ in range(20):
    began = time.perf_counter()
    ops.conv2d(batch, weight)
    times.append(time.perf_counter() - began)
kernel = min(times)
print(
    f"{outputs * 9:,} products: loops {loops:.2f} s, kernel {kernel * 1e6:.0f} us, {loops / kernel:,.0f} times faster"
)
assert loops > kernel

# %%
# What a network adds
# -------------------
# Nobody writes edge kernels any more: the nine numbers are parameters, and training finds them. The sum is
# differentiable, and its gradient with respect to the weights is a convolution again: of the image with the gradient
# that comes back. For one kernel and one image:

w = top_edge[None, None].clone().requires_grad_()
y = ops.conv2d(three[None, None], w)
upstream = torch.randint(-2, 3, y.shape).float()
y.backward(upstream)
assert torch.equal(w.grad, ops.conv2d(three[None, None], upstream))
print(w.grad[0, 0])
