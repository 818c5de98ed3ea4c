"""
4. A first network: three or seven
==================================

Five convolutions, each of which halves the image, tell threes from sevens. No fully connected layer: the last
convolution leaves one pixel with two channels, the scores of the two classes.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from pyconv import data, inspect, models, train

# %%
# The network
# -----------
# Every layer has a 3 x 3 kernel and stride 2. As the image shrinks to a quarter of its pixels, the channels double:
# the network says less about where, and more about what.

digits = data.load("mnist", classes=(3, 7), normalize=True)
model = models.build("simple_cnn_3v7")
table = inspect.summary(model, digits.train.images[:64])
print(table)

assert table.parameters == 6_722
convolutions = [row for row in table.rows if row.kind == "Conv2d"]
assert [row.parameters for row in convolutions] == [40, 296, 1168, 4640, 578]
assert [row.output[2] for row in convolutions] == [14, 7, 4, 2, 1]

# %%
# The third layer has 16 filters of 8 x 3 x 3 weights and 16 biases, and uses each weight at 4 x 4 places of each
# image:

assert convolutions[2].parameters == 16 * 8 * 3 * 3 + 16
assert convolutions[2].multiply_adds == 64 * 16 * 8 * 3 * 3 * 4 * 4

# %%
# What a unit sees more than doubles from layer to layer, until it is the whole image:

fields = inspect.receptive_field(model, 28)
print(fields)
assert [fields[f"{i}.0"].size[0] for i in range(3)] == [3, 7, 15]

# %%
# How fast to learn
# -----------------
# The learning rate is the one number that decides most. The finder tries all, on a copy of the model, each for one
# step, and draws the loss: take one from where it falls steeply, well before it rises.

torch.manual_seed(0)
inspect.lr_find(model, *digits.train).plot()
plt.show()

# %%
# Training
# --------
# The one-cycle schedule starts slowly, goes up to the rate that was chosen, and down to almost nothing, while the
# momentum goes the other way. The data that pyconv brings along are 2,000 threes and sevens, a sixth of what the
# course trains on: twelve epochs are as many steps as its two (on all of them: :doc:`/reproduced`).

settings = train.resolve({"epochs": 12}, recipe="chapter-3v7")
run = train.Run(settings, digits, torch.device("cpu"))
inspect.schedule(12 * run.steps, lr=settings["lr"]).plot()
plt.show()

# %%

recorder = inspect.Recorder()
follow = recorder.following(run)
while not run.finished():
    row = run.train_epoch(follow)
    recorder.epoch(train=row["train_accuracy"], test=row["test_accuracy"])
recorder.plot()
plt.show()
print(f"test accuracy {row['test_accuracy']:.2%}; the course, with all images: 99.0%")
assert row["test_accuracy"] > 0.965

# %%
# The same network on torch's own layers, from the same seed, ends where this one does:

twin = train.Run({**settings, "layers": "torch"}, digits, torch.device("cpu"))
while not twin.finished():
    other = twin.train_epoch()
print(f"on torch's layers {other['test_accuracy']:.2%}")
assert abs(other["test_accuracy"] - row["test_accuracy"]) < 0.02

# %%
# What it gets wrong
# ------------------

confusion = inspect.confusion_matrix(run.module, *digits.test, names=["3", "7"])
confusion.plot()
plt.show()
assert confusion.accuracy == row["test_accuracy"]

# %%

inspect.worst_mistakes(run.module, *digits.test, names=["3", "7"]).show()
plt.show()

# %%
# What it sees
# ------------
# The first layer's filters, found and not written, and what they make of one digit.

inspect.show_filters(run.module, "0.0")
plt.show()

# %%

inspect.show_feature_maps(run.module, digits.test.images[:1], "0.1")
plt.show()

# %%
# To follow one number through all five layers: click a feature map, then one of its pixels, then what it was made of.

folder = tempfile.TemporaryDirectory()  # until the page is copied from there
page = Path(folder.name, "explorer.html")
inspect.explorer(run.module, digits.test.images[0], page, labels=["3", "7"])
