"""
5. Ten digits: why training fails, and what helps
=================================================

The same kind of network for all ten digits, a learning rate of 0.06, and nothing learnt at all. Activation statistics
show what happened; larger batches, a schedule and batch norm each help. The recipes are those of the course; the data
are the 10,000 digits that pyconv brings along, a sixth of the course's, so that six epochs here are as many steps as
its one. With all of them, and from more seeds than one: :doc:`/reproduced`.
"""

import matplotlib.pyplot as plt
import torch

from pyconv import data, inspect, train

digits = data.load("mnist", normalize=True)


def trained(recipe):
    """Six epochs of a recipe, watched."""
    run = train.Run(train.resolve({"epochs": 6}, recipe=recipe), digits, torch.device("cpu"))
    recorder = inspect.Recorder()
    follow = recorder.following(run)
    with inspect.ActivationStats(run.module) as stats:
        while not run.finished():
            row = run.train_epoch(follow)
            recorder.epoch(accuracy=row["test_accuracy"])
    print(
        f"{recipe}: {run.settings['batch_size']} images a step, test accuracy {row['test_accuracy']:.2%}"
    )
    return run, recorder, stats


# %%
# A constant rate of 0.06
# -----------------------
# Batches of 64, as before.

run, recorder, stats = trained("chapter-constant")
recorder.plot()
plt.show()

# %%
# The loss falls to 2.3 and stays. That is log(10), the loss of a network that says the same for every image: one class
# in ten is right by chance. It need not go so: from some seeds the network gets through, and learns a little.

guess = torch.tensor(10.0).log().item()
assert abs(sum(recorder.losses[-100:]) / 100 - guess) < 0.05
assert 0.05 < recorder.metrics[-1]["accuracy"] < 0.2

# %%
# What the layers say
# -------------------
# The last layer before the scores is a ReLU. Its outputs are near zero almost everywhere: nothing comes through, and
# no gradient goes back.

stats.plot_layer_stats("3.1", steps=60)
plt.show()
late = stats.near_zero("3.1")[-100:].mean().item()
print(f"near zero after training: {late:.0%}")
assert late > 0.9

# %%
# The colourful dimension shows how it came to that. Each column is one step, a histogram of the activations, bright
# where many are. In training that goes well the colours spread upwards smoothly. Those of the first layer do something
# like it:

stats.color_dim("0.1")
plt.show()

# %%
# The last one's fall to the bottom in the first steps, and stay there. Here are the first sixty.

stats.color_dim("3.1", steps=60)
plt.show()
assert stats.near_zero("3.1")[100:].mean() > 0.9

# %%
# Most units of that layer are dead, zero for every image of the test set: they have no gradient to come back by.

dead = {found.layer: found for found in stats.dead_units(digits.test.images)}
print(dead["3.1"])
assert len(dead["3.1"].dead) > dead["3.1"].units // 2

# %%
# Larger batches, and one cycle
# -----------------------------
# With 512 images a step the gradient is less noisy; and the rate need not be 0.06 from the first step on. The
# one-cycle schedule starts at a twenty-fifth of it, when the weights are still random.

one_cycle, recorder, stats = trained("chapter-one-cycle")
inspect.schedule(6 * one_cycle.steps, lr=one_cycle.settings["lr"]).plot()
plt.show()

# %%
# It learns, after a restless beginning.

recorder.plot()
plt.show()

# %%

stats.color_dim("3.1")
plt.show()
assert recorder.metrics[-1]["accuracy"] > 0.93
assert stats.near_zero("3.1")[-20:].mean() < 0.95

# %%
# Batch norm
# ----------
# What went wrong is that activations wandered off. Batch norm fetches them back: it subtracts each channel's mean over
# the batch, divides by its standard deviation, and lets two parameters say what they should be instead.

with_norm, recorder, stats = trained("chapter-batch-norm")
stats.plot_layer_stats("3.2")
plt.show()

# %%
# Now the colours spread at once, and smoothly.

stats.color_dim("3.1")
plt.show()
assert recorder.metrics[-1]["accuracy"] > 0.96
extra = sum(p.numel() for p in with_norm.module.parameters()) - sum(
    p.numel() for p in run.module.parameters()
)
assert extra == 260  # two for each of 8 + 16 + 32 + 64 + 10 channels

# %%
# After training it needs no batch: the running mean and variance are constants then, and a convolution before it can
# take them in (``pyconv.fuse``).
#
# The table
# ---------

rows = [
    ("constant rate", "11.35%", run),
    ("one cycle, batches of 512", "97.4%", one_cycle),
    ("and batch norm", "98.6%", with_norm),
]
print(f"{'':<28}{'course':>8}  {'here, a sixth of the images':>28}")
for name, course, each in rows:
    print(f"{name:<28}{course:>8}  {each.history[-1]['test_accuracy']:>28.2%}")

# %%
# What is still wrong:

confusion = inspect.confusion_matrix(with_norm.module, *digits.test)
print(confusion.most_confused(5))
confusion.plot()
plt.show()

# %%

inspect.worst_mistakes(with_norm.module, *digits.test).show()
plt.show()
