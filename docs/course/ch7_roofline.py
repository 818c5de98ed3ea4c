"""
7. From loops to the roofline
=============================

The same sum again and again, each time closer to the machine. pyconv keeps every step, in an ordered list, and the
first that does not refuse a shape runs. Here they are asked, timed, and read.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import pyconv
from pyconv import inspect, models, nn, ops

# %%
# The list
# --------
# From the fastest where it can run, to the formula itself, which always can.

print(pyconv.algorithms("conv2d"))
assert pyconv.algorithms("conv2d")[-1] == "reference"

# %%
# Every kernel says what it is
# ----------------------------
# The head of each file: what it computes, how it cuts the work, what an operation costs. The first is the formula;
# read it, then one further down, and find the same sentence. (The sources lie beside a checkout, not in an installed
# package.)

found = pyconv.explain(nn.Conv2d(32, 32, 3, padding=1), torch.randn(1, 32, 28, 28))
root = Path(pyconv.__file__).parents[1]
for kernel in reversed(found.passes[0].candidates):
    source = root / kernel.source
    if source.exists():
        lines = source.read_text().splitlines()
        head = [line for line in lines[:14] if line.startswith("//")]
        print(f"{kernel.source}", *head[:6], sep="\n", end="\n\n")

# %%
# Who runs, and why the others do not
# -----------------------------------
# A kernel that cannot, or should not, says so in a sentence.

for layer, x in (
    (nn.Conv2d(3, 16, 3), torch.randn(1, 3, 32, 32)),
    (nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 32, 32)),
    (nn.Conv2d(64, 64, 3, padding=1, groups=64), torch.randn(1, 64, 32, 32)),
    (nn.Conv2d(64, 64, 1), torch.randn(1, 64, 32, 32)),
):
    forward = pyconv.explain(layer, x).passes[0]
    print(f"{layer}\n    runs {forward.chosen}")
    for kernel in forward.candidates:
        if kernel.refuses:
            print(f"    {kernel.name}: {kernel.refuses}")
    y = ops.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)
    forced = ops.conv2d(
        x,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        groups=layer.groups,
        algorithm=forward.chosen,
    )
    assert torch.equal(y, forced)

# %%
# Two roofs
# ---------
# A machine multiplies and adds at most so fast, and moves at most so many bytes a second. What a convolution needs of
# each tells which binds it. With few operations for each byte it waits for memory, and no kernel can help; with many
# it can come near the arithmetic's roof. Both are measured on the machine at hand.

few = pyconv.explain(nn.Conv2d(64, 64, 3, padding=1, groups=64), torch.randn(1, 64, 56, 56))
many = pyconv.explain(nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 56, 56))
for name, case in (("depthwise", few), ("full", many)):
    print(
        f"{name:<10}{case.flops / case.bytes:6.1f} FLOP per byte, at best {case.passes[0].bound * 1e6:.0f} us"
    )
assert few.flops * 64 == many.flops
assert few.flops / few.bytes < 5 < 50 < many.flops / many.bytes

# %%
# The ladder of a 3 x 3 convolution
# ---------------------------------

full = inspect.ladder("conv2d", "ic64ih28oc64kh3ph1", seconds=0.03)
print(full)
full.plot()
plt.show()
assert full.rungs[0].kernel == "reference"
assert min(r.seconds for r in full.rungs) < full.rungs[0].seconds / 5

# %%
# The ladder of a depthwise one
# -----------------------------
# Every channel is alone: a pixel that was read serves one output channel and no other, and kernels that are fast
# because it serves many are slow here.

depthwise = inspect.ladder("conv2d", "g64ic64ih28oc64kh3ph1", seconds=0.03)
print(depthwise)
depthwise.plot()
plt.show()
assert any(r.kernel.startswith("depthwise") for r in depthwise.rungs)

# %%
# And a whole network
# -------------------
# The roofline plot of a training step's layers: how far each is from what the machine could do.

profile = inspect.profile(models.build("simple_cnn_bn"), torch.randn(64, 1, 28, 28))
layers = [r for r in profile.rows if r.multiply_adds]
print(profile)
profile.plot()
plt.show()
assert all(r.backward_seconds > 0 for r in layers)
