"""
6. LeNet on clothes, and a photograph
=====================================

The network of 1998 on Fashion-MNIST, beside its twin on torch's own layers; then colour: a real photograph, its
channels, and what kernels make of them.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib import cbook

from pyconv import data, inspect, models, nn, ops, train

# %%
# The network
# -----------
# Two convolutions, each with a sigmoid and an average pooling, then three linear layers: 61,706 parameters, most of
# them in the first linear layer, most of the multiply-adds in the convolutions.

clothes = data.load("fashion-mnist")
names = [
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]
table = inspect.summary(models.LeNet5(), clothes.train.images[:256])
print(table)
by_kind = {kind: [r for r in table.rows if r.kind == kind] for kind in ("Conv2d", "Linear")}
assert table.parameters == 61_706
assert sum(r.parameters for r in by_kind["Linear"]) > 0.9 * table.parameters
assert sum(r.multiply_adds for r in by_kind["Conv2d"]) > 5 * sum(
    r.multiply_adds for r in by_kind["Linear"]
)

# %%
# Two epochs, twice
# -----------------
# From the same seed, on pyconv's layers and on torch's. They start from the same weights and see the same batches;
# sums are rounded in another order, and that is all the difference there is. The sigmoids of 1998 need many epochs
# (:doc:`/reproduced` has five of them, on all 60,000 images); rectified units and max pooling learn enough in two.


def trained(layers):
    settings = train.resolve(
        {"layers": layers, "model": "lenet5_relu", "epochs": 2}, recipe="lenet"
    )
    run = train.Run(settings, clothes, torch.device("cpu"))
    while not run.finished():
        run.train_epoch()
    return run


ours, torchs = trained("pyconv"), trained("torch")
print("epoch   loss           test accuracy      images a second")
print("        pyconv  torch  pyconv   torch     pyconv   torch")
for a, b in zip(ours.history, torchs.history):
    print(
        f"{a['epoch']:>5}   {a['loss']:.3f}  {b['loss']:.3f}   {a['test_accuracy']:.2%}   {b['test_accuracy']:.2%}"
        f"   {a['images_per_second']:8,.0f}{b['images_per_second']:8,.0f}"
    )
    assert abs(a["loss"] - b["loss"]) < 0.02
assert ours.history[-1]["test_accuracy"] > 0.6

# %%
# A shirt is hard to tell from a T-shirt, a pullover, a coat:

confusion = inspect.confusion_matrix(ours.module, *clothes.test, names=names)
print(confusion.most_confused(4))
confusion.plot()
plt.show()

# %%

inspect.worst_mistakes(ours.module, *clothes.test, names=names).show()
plt.show()

# %%
# Colour
# ------
# A colour image has three channels. This photograph of Grace Hopper comes with matplotlib.

with cbook.get_sample_data("grace_hopper.jpg") as file:
    photograph = torch.tensor(plt.imread(file)).permute(2, 0, 1) / 255  # (3, 600, 512)
photograph = ops.avg_pool2d(photograph[None], 4)[0]  # (3, 150, 128): sixteen pixels to one
assert photograph.shape == (3, 150, 128)
inspect.show_channels(photograph)
plt.show()

# %%
# A kernel for each channel
# -------------------------
# With as many groups as channels, each channel has a kernel of its own. A mean of 9 x 9 pixels, in one channel only:

blur = torch.zeros(3, 1, 9, 9)
blur[0] = 1 / 81
blur[1:, 0, 4, 4] = 1  # a one in the middle changes nothing
layer = nn.Conv2d(3, 3, 9, padding=4, groups=3, bias=False)
layer.weight.data.copy_(blur)
red_blurred = layer(photograph[None])[0].detach()
assert torch.equal(red_blurred[1:], photograph[1:])
middle = photograph[0, 50:59, 60:69].mean()
assert torch.isclose(red_blurred[0, 54, 64], middle, atol=1e-5)

# %%
# Or a kernel that finds edges, turned another way for each channel: from above in red, from the left in green, from
# the corner in blue. Filters of colours are drawn in the colour of the channel that they see, and in its opposite where
# they are below zero, which is grey.

edges = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]])  # Sobel
corner = torch.tensor([[-2.0, -1, 0], [-1, 0, 1], [0, 1, 2]])
layer = nn.Conv2d(3, 3, 3, groups=3, bias=False)
layer.weight.data.copy_(torch.stack([edges, edges.T, corner])[:, None])
inspect.show_filters(layer, 0)
plt.show()

# %%

inspect.show_feature_maps(layer, photograph, 0)
plt.show()

# %%
# A mixture of channels
# ---------------------
# A 1 x 1 kernel makes grey of the three, as the eye weighs them; a 3 x 3 kernel over all three finds edges in that.

grey = torch.tensor([0.299, 0.587, 0.114])
by_two = ops.conv2d(ops.conv2d(photograph[None], grey.view(1, 3, 1, 1)), edges[None, None])
kernel = grey.view(1, 3, 1, 1) * edges  # (1, 3, 3, 3): one layer does both
by_one = ops.conv2d(photograph[None], kernel)
assert torch.allclose(by_two, by_one, atol=1e-5)

_, axes = plt.subplots(1, 3, figsize=(9, 3.8), layout="constrained")
pictures = [photograph.permute(1, 2, 0), red_blurred.permute(1, 2, 0).clamp(0, 1), by_one[0, 0]]
for ax, picture, title in zip(
    axes, pictures, ("photograph", "red channel blurred", "horizontal edges")
):
    ax.imshow(picture.numpy(), cmap="gray")
    ax.set_title(title, fontsize=9)
    ax.axis("off")
plt.show()

# %%
# How far a deep network sees
# ---------------------------
# The units of ResNet-18's third stage see 211 pixels each way: on this photograph everything, and more. Those of its
# second see 99; which of them count is drawn over it, for random weights.

fields = inspect.receptive_field(models.build("resnet18"), (150, 128))
assert fields["layer2.1.conv2"].size == (99, 99)
wide = inspect.receptive_field(models.build("resnet18"), 320)
assert wide["layer3.1.conv2"].size == (211, 211)
fields.plot(image=photograph, layer="layer2.1.conv2")
plt.show()
