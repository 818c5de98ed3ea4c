"""The figures of pyconv.inspect: receptive fields, matrices and pictures, against float64 and torch's own."""

import pytest
import torch
import torch.nn.functional as F

import pyconv.nn as ours
from pyconv import data, inspect, models, ops

pytestmark = pytest.mark.usefixtures("pyplot")

# --- receptive field


class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = ours.Conv2d(1, 3, 3, padding=1)
        self.wide = ours.Conv2d(3, 3, (3, 2), padding=(2, 1), dilation=(2, 1), groups=3)
        self.pool = ours.MaxPool2d(3, 2, ceil_mode=True)
        self.up = ours.ConvTranspose2d(6, 2, 3, stride=2, padding=1)
        self.odd = models.resnet.PadShortcut(1, 2)
        self.avg = ours.AdaptiveAvgPool2d(3)

    def forward(self, x):
        x = self.conv(x)
        wide = self.wide(x)[..., :-1]
        x = torch.cat([x, x + wide], 1)
        return self.avg(self.odd(self.up(self.pool(x))))


def test_every_field_is_the_extent_of_the_gradient():
    model, size = Branches().double(), (13, 11)
    for p in model.parameters():
        p.data = p.data.abs() + 0.1  # nothing cancels
    fields = inspect.receptive_field(model, size)
    assert [f.name for f in fields.layers] == ["conv", "wide", "pool", "up", "odd", "avg"]
    outputs = {}
    for name in ("conv", "wide", "up", "odd", "avg"):
        layer = getattr(model, name)
        layer.register_forward_hook(lambda m, a, y, name=name: outputs.update({name: y}))
    x = (torch.rand(1, 1, *size).double() + 1).requires_grad_()
    for pool in (model.pool,):  # a maximum's gradient reaches one pixel only: average instead
        pool.forward = lambda t: F.avg_pool2d(t, 3, 2, ceil_mode=True)
    model(x)
    for name, y in outputs.items():
        for row in range(y.shape[2]):
            for column in range(y.shape[3]):
                (g,) = torch.autograd.grad(y[0, :, row, column].sum(), x, retain_graph=True)
                met = g[0, 0].nonzero()
                box = (*met.min(0).values.tolist(), *met.max(0).values.tolist())
                assert fields[name].box(row, column) == box, (name, row, column)


def test_the_field_of_resnet18_and_its_effective_one():
    model = models.resnet18(nn=torch.nn)
    fields = inspect.receptive_field(model, 448)
    # As Araujo, Norris, Sim, "Computing receptive fields of CNNs", Distill 2019, has it: 435.
    assert fields["layer4.1.conv2"].size == (435, 435)
    assert fields["layer4.1.conv2"].jump == (32, 32)
    assert fields["fc"].size == (448, 448)
    small = inspect.receptive_field(models.build("lenet5_relu"), 28)
    effective = small.effective("pool2", at=(1, 2))
    top, left, bottom, right = small["pool2"].box(1, 2)
    outside = effective.clone()
    outside[top : bottom + 1, left : right + 1] = 0
    assert outside.abs().max() == 0
    assert (effective > 0).sum() > 200
    assert len(small.plot(image=torch.rand(1, 28, 28)).patches) == 4  # conv1, pool1, conv2, pool2


def test_a_convolution_that_is_no_layer_is_said():
    class Functional(torch.nn.Module):
        def forward(self, x):
            return F.conv2d(x, torch.ones(1, 1, 3, 3))

    class Around(Functional):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.ReLU()

    assert inspect.receptive_field(Functional(), 8).layers[0].box(2, 3) == (
        2,
        3,
        4,
        5,
    )  # by gradient
    with pytest.raises(NotImplementedError, match="conv2d is called as a function"):
        inspect.receptive_field(Around(), 8)

    class Ours(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.ReLU()

        def forward(self, x):
            return self.layer(ops.conv2d(x, torch.ones(1, 1, 3, 3)))

    with pytest.raises(NotImplementedError, match=r"layer is given|called as a function"):
        inspect.receptive_field(Ours(), 8)


# --- convolution taken apart

GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "padding": (0, 2), "dilation": (2, 1)},
    {"padding": 2, "groups": 2},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_matrix_is_the_convolution(geometry):
    w = torch.randn(4, 4 // geometry.get("groups", 1), 3, 2)
    x = torch.randn(2, 4, 7, 6).double()
    found = inspect.conv_as_matrix(w, (7, 6), **geometry)
    judge = F.conv2d(x, w.double(), **geometry)
    by_matrix = torch.einsum("oi,ni->no", found.matrix.double(), x.flatten(1)).view(judge.shape)
    assert (by_matrix - judge).abs().max() < 1e-12
    assert found.proof(x) < 1e-12
    found.weight = w + 1  # the proof can fail
    assert found.proof(x) > 0.1
    assert torch.equal(found.tied >= 0, found.matrix != 0)
    for index in (0, 7, w.numel() - 1):
        assert (found.matrix[found.tied == index] == w.flatten()[index]).all()
    found.plot()


@pytest.mark.parametrize("geometry", GEOMETRIES[:3], ids=str)
def test_im2col_is_unfold(geometry):
    image = torch.randn(3, 8, 9)
    found = inspect.show_im2col(image, (3, 2), **geometry)
    assert torch.equal(found.columns, F.unfold(image[None], (3, 2), **geometry)[0])


@pytest.mark.parametrize(
    ("m", "r"), [(2, 3), (4, 3), (3, 3), (4, 5), (2, 7), (5, 2), (1, 3), (4, 1)]
)
def test_winograds_output_is_the_convolution(m, r):
    image, kernel = torch.randn(11, 13), torch.randn(r, r)
    found = inspect.winograd_tiles(image, kernel, m, padding=1)
    judge = F.conv2d(image[None, None].double(), kernel[None, None].double(), padding=1)[0, 0]
    assert (found.output - judge).abs().max() < 1e-10
    assert found.multiplications == ((m + r - 1) ** 2, (m * r) ** 2)


def test_the_edges_of_the_courses_three():
    three = data.load("mnist").train.images[12] * 255
    kernels = {
        "top": [[-1, -1, -1], [0, 0, 0], [1, 1, 1]],
        "left": [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]],
    }
    for rows in kernels.values():
        kernel = torch.tensor(rows).float()
        found = inspect.apply_kernel(three, kernel, padding=1, stride=2)
        for row, column in ((0, 0), (3, 4), (13, 13)):
            image = F.pad(three[0], (1, 1, 1, 1))
            total = sum(
                float(image[2 * row + i, 2 * column + j]) * rows[i][j]
                for i in range(3)
                for j in range(3)
            )
            assert found.output[row, column].item() == total
            assert found.products(row, column).sum().item() == total
    assert len(found.plot(at=(3, 4))) == 4
    found = inspect.apply_kernel(three, kernel, stride=(2, 3), padding=1, dilation=(3, 2))
    judge = F.conv2d(three[None], kernel[None, None], None, (2, 3), 1, (3, 2))[0, 0]
    assert torch.equal(found.output, judge)
    for row, column in ((0, 0), (5, 2), (11, 8)):
        assert found.products(row, column).sum() == judge[row, column]


def test_pictures_are_the_weights_and_the_outputs():
    model = models.LeNet5()
    assert torch.equal(
        inspect.show_filters(model, "conv2", most=7).images, model.conv2.weight.flatten(0, 1)[:7]
    )
    x = torch.randn(2, 1, 28, 28)
    model.conv1.weight.data.neg_()
    shown = inspect.show_feature_maps(model, x, "act1", image=1)
    assert torch.equal(shown.images, model.act1(model.conv1(x))[1])
    assert len(shown.figure.axes) == 6
    with pytest.raises(ValueError, match="has no filters"):
        inspect.show_filters(model, "pool1")
    with pytest.raises(ValueError, match="there are conv1, act1"):
        inspect.show_feature_maps(model, x, "conv9")


def test_filters_of_colours_are_drawn_in_them():
    full = ours.Conv2d(3, 4, 5)
    color = inspect.show_filters(full, 0).color  # grey + weight / (2 * the largest)
    scale = 2 * full.weight.abs().max()
    assert torch.allclose((color - 0.5) * scale, full.weight.permute(0, 2, 3, 1), atol=1e-6)
    depthwise = ours.Conv2d(3, 6, 3, groups=3)
    shown = inspect.show_filters(depthwise, 0)
    assert shown.titles == ["0, red", "1, red", "2, green", "3, green", "4, blue", "5, blue"]
    scale = 2 * depthwise.weight.abs().max()
    for oc in range(6):
        own = shown.color[oc, :, :, oc // 2]
        assert torch.allclose((own - 0.5) * scale, depthwise.weight[oc, 0], atol=1e-6)
        others = [channel for channel in range(3) if channel != oc // 2]
        assert (shown.color[oc, :, :, others] == 0.5).all()
