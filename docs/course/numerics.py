"""
Numerics and determinism
========================

What pyconv promises of its results, and how exact they are, each shown by lines that run.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import pyconv
from pyconv import backends, nn, ops

torch.manual_seed(0)
x, w = torch.randn(4, 16, 14, 14), torch.randn(16, 16, 3, 3)

# %%
# The same bits
# -------------
# In every run, and for any number of threads: every sum has one owner and one order, and no two threads add to the
# same place. Forward and backward, there is no switch to ask for it; ``torch.use_deterministic_algorithms`` changes
# nothing.


def all_of_it(threads):
    torch.set_num_threads(threads)
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    y = ops.max_pool2d(ops.conv2d(*leaves, padding=1), 2)
    y = nn.BatchNorm2d(16)(y)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


before = torch.get_num_threads()
once = all_of_it(1)
for threads in (1, 2, 3, 4):
    for a, b in zip(once, all_of_it(threads), strict=True):
        assert torch.equal(a, b)
torch.set_num_threads(before)

# %%
# In any batch: what a forward pass makes of an image does not depend on its neighbours. So an image that is tested
# alone has the score that it had among a thousand. (The weights' gradient is a sum over the batch; batch norm in
# training mixes the batch, being what it is.)

for algorithm in pyconv.algorithms("conv2d"):
    cannot = {k.name: k.cannot for k in pyconv.explain(ops.conv2d, x, w).passes[0].candidates}
    if not cannot[algorithm]:
        y = ops.conv2d(x, w, padding=1, algorithm=algorithm)
        alone = ops.conv2d(x[2:3], w, padding=1, algorithm=algorithm)
        assert torch.equal(alone, y[2:3])

# %%
# Not promised: the same bits on another CPU. Wider vectors sum in another order, and another kernel may be chosen. Nor
# the bits of torch, whose sums have another order again.
#
# How far from float64
# --------------------
# A sum of n products in float32 errs by some units of 2^-24, half of float32's last digit, and by the square root of n
# more as n grows, since errors cancel in part. Long sums that are made of several shorter ones err less: those of
# implicit_gemm, from 384 terms on, and of torch. Winograd's transforms subtract what is alike, which costs some units
# at once and less later on.

channels = (4, 16, 64, 256)
errors = {name: [] for name in ("reference", "implicit_gemm", "winograd", "torch")}
for count in channels:
    image, weight = torch.randn(1, count, 12, 12), torch.randn(32, count, 3, 3)
    judge = F.conv2d(image.double(), weight.double(), padding=1)
    for name, found in errors.items():
        y = (
            F.conv2d(image, weight, padding=1)
            if name == "torch"
            else ops.conv2d(image, weight, padding=1, algorithm=name)
        )
        found.append(float((y - judge).norm() / judge.norm()) * 2**24)
_, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, found in errors.items():
    ax.plot(channels, found, "o-", label=name)
ax.set(
    xscale="log",
    ylim=(0, None),
    xlabel="input channels of a 3 x 3 convolution",
    ylabel="error in units of 2^-24",
)
ax.set_xticks(channels, [str(count) for count in channels])
ax.minorticks_off()
ax.legend(fontsize=8)
ax.grid(alpha=0.3)
plt.show()
for name, found in errors.items():
    assert max(found) < (25 if name == "winograd" else 16), name
assert errors["implicit_gemm"][-1] < errors["reference"][-1] / 1.5

# %%
# Without Winograd, for the process (or ``PYCONV_ALLOW_WINOGRAD=0`` in its environment):

backends.allow_winograd = False
assert (
    pyconv.explain(ops.conv2d, torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3))
    .passes[0]
    .chosen
    != "winograd"
)
backends.allow_winograd = True

# %%
# Whole numbers
# -------------
# Sums of whole numbers below 2^24 are exact in float32, in any order, and so equal for every kernel but Winograd,
# whose tiles have fractions. That is how the tests compare without a tolerance.

whole_x, whole_w = torch.randint(-8, 9, x.shape).float(), torch.randint(-8, 9, w.shape).float()
exact = ops.conv2d(whole_x, whole_w, algorithm="reference")
for algorithm in ("direct_planes", "direct_channels", "implicit_gemm"):
    assert torch.equal(ops.conv2d(whole_x, whole_w, algorithm=algorithm), exact)

# %%
# bfloat16 and float16
# --------------------
# Their products are exact in float32, are summed there, and rounded once, when the result is stored. What remains is
# the rounding of a single value, at most 2^-8 of it in bfloat16 and 2^-11 in float16:

for dtype, unit in ((torch.bfloat16, 2**-8), (torch.float16, 2**-11)):
    small_x, small_w = x.to(dtype), w.to(dtype)
    y = ops.conv2d(small_x, small_w, algorithm="implicit_gemm")
    judge = F.conv2d(small_x.double(), small_w.double())
    worst = ((y.double() - judge).abs() / judge.abs().clamp_min(1)).max().item()
    print(f"{dtype}: at most {worst / unit:.3f} of that")
    assert worst < 1.001 * unit

# %%
# Batch norm keeps its statistics, running mean and variance in float32 for these, as torch does; averages of poolings
# are summed in float32.
#
# On a GPU
# --------
# float32 convolutions stay float32 there, unless TF32 is allowed: 10 bits of each operand, sums in float32. Nothing
# adds atomically, so that runs are the same there, too.

assert backends.cuda.allow_tf32 is False

# %%
# Infinities and NaN
# ------------------
# They go where the formula takes them: to the outputs whose window has them. Winograd's transforms spread them over a
# tile. A pooling's maximum is NaN where the window has one.

hole = torch.zeros(1, 16, 14, 14)
hole[0, 0, 7, 7] = torch.nan
met = {
    name: int(ops.conv2d(hole, w, algorithm=name)[0, 0].isnan().sum())
    for name in ("implicit_gemm", "winograd")
}
print(met)
assert met["implicit_gemm"] == 9
assert met["winograd"] >= 9
assert ops.max_pool2d(hole, 2)[0, 0, 3, 3].isnan()

# %%
# Derivatives
# -----------
# Of every order, by formulas that are checked against finite differences in float64:

a, b = (
    torch.randn(size, dtype=torch.float64, requires_grad=True)
    for size in ((1, 2, 5, 4), (3, 2, 3, 2))
)
assert torch.autograd.gradcheck(ops.conv2d, (a, b))
assert torch.autograd.gradgradcheck(ops.conv2d, (a, b))
