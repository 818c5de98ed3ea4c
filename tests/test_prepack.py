"""pyconv.prepack: the same bits from packed weights, and never from stale ones."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.nn.utils import parametrizations

import pyconv
import pyconv.nn as ours
from pyconv import _native, models, ops
from tests.cases import CONV2D
from tests.helpers import DTYPES, LAYOUTS, random, runs_or_refuses

ids = {"ids": str}
ALGORITHMS = _native.lib.algorithms["conv2d"] if _native.lib else ["reference"]
pytestmark = pytest.mark.skipif(_native.lib is None, reason="the reference has no packed weights")


# --- the operators


def packed_and_plain(case, dtype, layout, algorithm):
    x = random(*case.x, dtype=dtype, layout=layout)
    w = random(*case.w, dtype=dtype, layout=layout)
    packed = ops.conv2d_pack(x, w, **case.arguments, algorithm=algorithm)
    arguments = dict(**case.arguments, algorithm=algorithm)
    return packed, ops.conv2d_fused(x, w, **arguments, packed=packed), ops.conv2d(x, w, **arguments)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", CONV2D[::2], **ids)
def test_the_same_bits(case, algorithm, dtype, layout):
    found = runs_or_refuses(lambda: packed_and_plain(case, dtype, layout, algorithm))
    if found is not None:
        packed, y, expected = found
        assert torch.equal(y, expected)
        assert packed is None or algorithm != "reference"


@pytest.mark.parametrize("case", CONV2D[::3], **ids)
def test_every_instruction_set(case, isa):
    _, y, expected = packed_and_plain(case, torch.float32, torch.contiguous_format, "implicit_gemm")
    assert torch.equal(y, expected)


WEIGHT = torch.randn(40, 24, 3, 3)
# channels_last: implicit_gemm reads the weights of NCHW where they lie.
IMAGE = torch.randn(2, 24, 9, 9).to(memory_format=torch.channels_last)
GEMM = dict(stride=2, algorithm="implicit_gemm")


@pytest.mark.parametrize(
    ("x", "w", "arguments"),
    [
        (IMAGE, WEIGHT + 1, GEMM),
        (IMAGE, WEIGHT.roll(1, 0), GEMM),
        (IMAGE.double(), WEIGHT.double(), GEMM),
        (IMAGE.bfloat16(), WEIGHT.bfloat16(), GEMM),
        (IMAGE.contiguous(), WEIGHT.contiguous(), GEMM),
        (IMAGE, WEIGHT[:, :12], GEMM | dict(groups=2)),
        (IMAGE, WEIGHT[:20], GEMM),
        (IMAGE, WEIGHT.flatten(2)[:, :, None], GEMM),
        (IMAGE, WEIGHT, GEMM | dict(algorithm="reference")),
        (IMAGE, WEIGHT, GEMM | dict(algorithm="direct_planes")),
        (IMAGE, WEIGHT, GEMM | dict(padding=3, dilation=2)),
        (IMAGE[:, :, :5], WEIGHT, GEMM),
    ],
)
def test_what_does_not_fit_is_left_aside(x, w, arguments):
    packed = ops.conv2d_pack(IMAGE, WEIGHT, **GEMM)
    assert packed is not None
    groups = arguments.get("groups", 1)
    x = x[:, : w.shape[1] * groups]
    y = ops.conv2d_fused(x, w, **arguments, packed=packed)
    assert torch.equal(y, ops.conv2d(x, w, **arguments))


def test_another_instruction_set_is_noticed():
    for a in _native.lib.available_isas():
        for b in _native.lib.available_isas():
            _native.lib.set_isa(a)
            packed = ops.conv2d_pack(IMAGE, WEIGHT, **GEMM)
            _native.lib.set_isa(b)
            y = ops.conv2d_fused(IMAGE, WEIGHT, **GEMM, packed=packed)
            assert torch.equal(y, ops.conv2d(IMAGE, WEIGHT, **GEMM))


@pytest.mark.parametrize("bytes", [0, 1, 127, 128, 5000])
def test_anything_else_is_left_aside(bytes):
    packed = torch.zeros(bytes, dtype=torch.uint8)
    y = ops.conv2d_fused(IMAGE, WEIGHT, **GEMM, packed=packed)
    assert torch.equal(y, ops.conv2d(IMAGE, WEIGHT, **GEMM))


def test_mistakes_are_named():
    with pytest.raises(pyconv.ShapeError, match="groups=5"):
        ops.conv2d_pack(IMAGE, WEIGHT, groups=5)
    with pytest.raises(ValueError, match="no algorithm"):
        ops.conv2d_pack(IMAGE, WEIGHT, algorithm="none of these")


# --- the layers


def layer(**arguments):
    """One that packs: the kernel forced, so that it does whatever the list prefers."""
    made = ours.Conv2d(24, 40, 3, stride=2, **arguments)
    made.algorithm = "implicit_gemm"
    return pyconv.prepack(made)


def plain(conv, x):
    """What the layer says without packed weights."""
    return ops.conv2d(
        x, conv.weight, conv.bias, conv.stride, conv.padding, algorithm=conv.algorithm
    )


def held(conv):
    """The packed weights a layer holds."""
    return [p for p in conv.packed_weight._by_size.values() if p is not None]


@pytest.fixture
def conv():
    made = layer().to(memory_format=torch.channels_last)
    with torch.no_grad():
        made(IMAGE)
    assert held(made)
    return made


def half_and_back(m):
    m.half().float()


def by_optimiser(m):
    m.weight.grad = torch.ones_like(m.weight)
    torch.optim.SGD([m.weight], lr=1.0).step()


def by_numpy(m):
    m.weight.detach().numpy()[...] *= 2


def by_assignment(m):
    m.weight = Parameter(torch.randn_like(m.weight))


def by_data(m):
    m.weight.data = torch.randn_like(m.weight)


CHANGES = {
    "load_state_dict": lambda m: m.load_state_dict(layer().state_dict()),
    "load_state_dict, assigned": lambda m: m.load_state_dict(layer().state_dict(), assign=True),
    "in place": lambda m: m.weight.mul_(2),
    "one value in place": lambda m: m.weight[3, 2, 1, 1].fill_(50),
    "init": lambda m: nn.init.normal_(m.weight),
    "optimiser": by_optimiser,
    "assignment": by_assignment,
    "data assigned": by_data,
    "data in place": lambda m: m.weight.data.mul_(2),
    "data copied": lambda m: m.weight.data.copy_(torch.randn_like(m.weight)),
    "numpy": by_numpy,
    "to NCHW": lambda m: m.to(memory_format=torch.contiguous_format),
    "half and back": half_and_back,
    "reset_parameters": lambda m: m.reset_parameters(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_never_read_from_the_old_copy(conv, change):
    with torch.no_grad():
        before = conv(IMAGE)
        CHANGES[change](conv)
        y = conv(IMAGE)
        assert torch.equal(y, plain(conv, IMAGE))
        # The two layouts add the same products in another order.
        assert torch.allclose(y, before, rtol=1e-5, atol=1e-5) == (change == "to NCHW")
        assert torch.equal(conv(IMAGE), y)


def test_storage_given_to_another_weight_is_not_taken_for_the_old_one(conv):
    with torch.no_grad():
        for _ in range(20):
            address = conv.weight.data_ptr()
            conv.weight = None
            conv.weight = Parameter(torch.randn(40, 24, 3, 3).to(memory_format=torch.channels_last))
            assert conv.weight.data_ptr() != address
            assert torch.equal(conv(IMAGE), plain(conv, IMAGE))


def test_dtypes(conv):
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float32):
        conv.to(dtype)
        with torch.no_grad():
            assert torch.equal(conv(IMAGE.to(dtype)), plain(conv, IMAGE.to(dtype)))


def test_several_sizes_share_one_copy(conv):
    with torch.no_grad():
        for size in (5, 9, 12, 30):
            for n in (0, 1, 3):
                x = torch.randn(n, 24, size, size)
                assert torch.equal(conv(x), plain(conv, x))
    assert len({p.data_ptr() for p in held(conv)}) == 1


@pytest.mark.parametrize(
    "again",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(saved(m), weights_only=False),
    ],
)
def test_copies_start_without_and_pack_their_own(conv, again):
    twin = again(conv)
    assert held(twin) == []
    with torch.no_grad():
        twin.weight.mul_(3)
        assert torch.equal(twin(IMAGE), plain(twin, IMAGE))
        assert torch.equal(conv(IMAGE), plain(conv, IMAGE))
    assert len(held(twin)) == len(held(conv)) == 1
    assert held(twin)[0].data_ptr() != held(conv)[0].data_ptr()


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_a_shallow_copy_shares_the_weight_and_stays_right(conv):
    twin = copy.copy(conv)
    twin._parameters = dict(conv._parameters)
    twin.weight = Parameter(conv.weight.detach() * 2)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(twin(IMAGE), plain(twin, IMAGE))
            assert torch.equal(conv(IMAGE), plain(conv, IMAGE))


def test_not_in_the_state_dict_nor_the_size_of_a_pickle(conv):
    bare = ours.Conv2d(24, 40, 3, stride=2)
    assert conv.state_dict().keys() == bare.state_dict().keys()
    assert len(pickle.dumps(conv)) < len(pickle.dumps(bare)) + 200


def test_gradients_take_the_weight_itself(conv):
    conv.weight.grad = None
    x = IMAGE.clone().requires_grad_()
    conv(x).sum().backward()
    assert conv.weight.grad is not None
    assert x.grad is not None
    dw, dx = conv.weight.grad, x.grad
    expected = torch.autograd.grad(plain(conv, x).sum(), (conv.weight, x))
    assert torch.equal(dw, expected[0])
    assert torch.equal(dx, expected[1])


def test_training_between_inferences(conv):
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        conv(IMAGE).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            assert torch.equal(conv(IMAGE), plain(conv, IMAGE))


def test_computed_weights_are_not_packed():
    made = parametrizations.weight_norm(layer())
    with torch.no_grad():
        for scale in (1, 2, 3):
            made.parametrizations.weight.original0.fill_(scale)
            assert torch.equal(made(IMAGE), plain(made, IMAGE))
    assert held(made) == []


def test_functional_calls_bring_their_own_weight(conv):
    other = {"weight": torch.randn(40, 24, 3, 3), "bias": torch.randn(40)}
    with torch.no_grad():
        y = torch.func.functional_call(conv, other, (IMAGE,))
        expected = ops.conv2d(IMAGE, other["weight"], other["bias"], **GEMM)
        assert torch.equal(y, expected)
        assert torch.equal(conv(IMAGE), plain(conv, IMAGE))


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        made = layer()
        for _ in range(2):
            assert torch.equal(made(IMAGE), plain(made, IMAGE))
            made.weight.mul_(2)


def test_autocast_compile_and_func(conv):
    with torch.no_grad():
        expected = conv(IMAGE)
        assert torch.equal(torch.compile(conv, fullgraph=True)(IMAGE), expected)
        assert torch.equal(torch.func.vmap(conv)(IMAGE[:, None])[:, 0], expected)
        with torch.autocast("cpu", torch.bfloat16):
            low = conv(IMAGE)
        assert torch.equal(low, copy.deepcopy(conv).bfloat16()(IMAGE.bfloat16()))


# --- models


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("name", ["resnet20", "resnet18_small", "simple_cnn"])
def test_models(name, layout):
    model = models.build(name, in_channels=3).eval().to(memory_format=layout)
    x = torch.randn(2, 3, 32, 32).to(memory_format=layout)
    for each in (model, pyconv.fuse(model)):
        with torch.no_grad():
            expected = each(x)
            assert pyconv.prepack(each) is each
            assert torch.equal(each(x), expected)
            assert torch.equal(each(x), expected)
            assert torch.equal(copy.deepcopy(each)(x), expected)
            assert torch.equal(pyconv.prepack(each)(x), expected)


def test_padding_modes_and_one_image():
    made = layer(padding=1, padding_mode="reflect")
    x = torch.randn(24, 9, 9)
    with torch.no_grad():
        expected = ours.functional.pad(x[None], (1, 1, 1, 1), mode="reflect")
        y = ops.conv2d(expected, made.weight, made.bias, **GEMM)[0]
        assert torch.equal(made(x), y)
        assert torch.equal(made(x), y)


def test_mistakes_of_models():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        pyconv.prepack(3)
    with pytest.raises(ValueError, match=r"no convolution of pyconv\.nn; pyconv\.fuse"):
        pyconv.prepack(nn.Conv2d(3, 3, 1))
