"""pyconv inside the rest of torch: what a user of nn.Conv2d takes for granted."""

import copy

import pytest
import torch
import torch._dynamo.testing
from networks import images, network
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import pyconv
import pyconv.nn as ours

close = torch.testing.assert_close


def step(model, x):
    """(output, gradient of the input and of every parameter) of one pass."""
    x = x.detach().requires_grad_()
    y = model(x)
    return y, torch.autograd.grad(y.square().sum(), [x, *model.parameters()])


class TestCompile:
    @pytest.fixture(autouse=True)
    def forget_compiled_code(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("dynamic", [False, True])
    def test_training_step(self, dynamic, channels_last):
        model = network()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        twin = copy.deepcopy(model)
        compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for n in (3, 5):
            x = images(n)
            if channels_last:
                x = x.to(memory_format=torch.channels_last)
            close(step(compiled, x), step(twin, x))
        close(model.state_dict(), twin.state_dict())

    def test_dynamic_shapes_are_one_graph(self):
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        model = ours.Sequential(ours.Conv2d(3, 4, 3), ours.MaxPool2d(2), ours.AdaptiveAvgPool2d(2))
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
        for size in ((2, 3, 8, 9), (4, 3, 10, 13), (5, 3, 16, 12)):  # no two sizes alike
            close(compiled(x := torch.randn(size)), model(x))
        assert counter.frame_count == 1

    def test_inductor(self):
        model = ours.Sequential(ours.Conv2d(2, 4, 3, padding=1), ours.ReLU(), ours.MaxPool2d(2))
        compiled = torch.compile(model, fullgraph=True)
        close(step(compiled, x := images(dtype=torch.float32)), step(model, x))

    def test_autocast(self):
        model = network(dtype=torch.float32)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = compiled(x := images(dtype=torch.float32)), model(x)
        assert y.dtype == expected.dtype == torch.bfloat16
        close(y, expected)

    def test_errors_keep_their_words(self):
        compiled = torch.compile(ours.Conv2d(3, 4, 3), fullgraph=True, backend="aot_eager")
        with pytest.raises(Exception, match="to have 3 channels, but got 2 channels"):
            compiled(torch.randn(1, 2, 8, 8))

    @pytest.mark.parametrize("transform", ["grad", "per_sample", "jvp"])
    def test_torch_func_inside(self, transform):
        x, w = images(), torch.randn(4, 2, 3, 3, dtype=torch.float64)

        def function(conv2d, x, w):
            loss = lambda w, x: conv2d(x, w).sin().sum()  # noqa: E731
            if transform == "grad":
                return torch.func.grad(loss)(w, x)
            if transform == "jvp":
                return torch.func.jvp(lambda w: loss(w, x), (w,), (torch.ones_like(w),))[1]
            return torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x[:, None])

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        close(compiled(pyconv.ops.conv2d, x, w), function(nn.functional.conv2d, x, w))


class TestExport:
    def test_graph_names_our_operators(self):
        model = network().eval()
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
        targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert "pyconv.conv2d.default" in targets
        assert not [
            t for t in targets if "aten" in t and ("conv" in t or "pool" in t or "batch_norm" in t)
        ]
        close(program.module()(x := images(5)), model(x))

    def test_training_graph_after_decompositions(self):
        program = torch.export.export(network(), (images(),)).run_decompositions()
        close(program.module()(x := images()), network()(x))

    def test_file(self, tmp_path):
        model = network().eval()
        torch.export.save(torch.export.export(model, (images(),)), tmp_path / "model.pt2")
        close(torch.export.load(tmp_path / "model.pt2").module()(x := images()), model(x))


KEEP_DTYPE = (
    ours.MaxPool2d(2),
    ours.AvgPool2d(2),
    ours.AdaptiveAvgPool2d(2),
    ours.AdaptiveMaxPool2d(2),
    ours.BatchNorm2d(4),
)


class TestAutocast:
    def dtypes(self, namespace, dtype):
        model, seen = network(namespace, torch.float32), []
        for layer in model:
            layer.register_forward_hook(
                lambda layer, _, y: seen.append((layer._get_name(), y.dtype))
            )
        with torch.autocast("cpu", dtype):
            y = model(images(dtype=torch.float32))
        y.float().sum().backward()
        seen += [(name, p.grad.dtype) for name, p in model.named_parameters()]
        return seen

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_dtypes_are_torchs(self, dtype):
        assert self.dtypes(ours, dtype) == self.dtypes(nn, dtype)

    def test_pooling_and_batch_norm_keep_the_dtype(self):
        x = torch.randn(2, 4, 6, 6)
        with torch.autocast("cpu", torch.bfloat16):
            for layer in KEEP_DTYPE:
                assert layer(x).dtype == torch.float32
            assert ours.Conv2d(4, 4, 3)(x).dtype == torch.bfloat16
            assert ours.ConvTranspose2d(4, 4, 3)(x).dtype == torch.bfloat16
            assert ours.Conv2d(4, 4, 3).double()(x.double()).dtype == torch.float64

    def test_values(self):
        x, w, b = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3), torch.randn(4)
        with torch.autocast("cpu", torch.bfloat16):
            y = pyconv.ops.conv2d(x, w, b)
            raw = torch.ops.pyconv.conv2d(x, w, b, 1, 1, 0, 0, 1, 1, 1, "")
        expected = pyconv.ops.conv2d(x.bfloat16(), w.bfloat16(), b.bfloat16())
        close(y, expected, rtol=0, atol=0)
        close(raw, expected, rtol=0, atol=0)

    def test_backward_inside_the_region_keeps_the_forward_dtype(self):
        x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3, requires_grad=True)
        y = pyconv.ops.conv2d(x, w)
        with torch.autocast("cpu", torch.bfloat16):
            (inside,) = torch.autograd.grad(y.sum(), w, retain_graph=True)
        close(inside, torch.autograd.grad(y.sum(), w)[0], rtol=0, atol=0)


class TestWithoutData:
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_meta_tells_what_the_kernels_do(self, layout):
        """Shape, strides and dtype on the meta device: torch's, and those of the real tensor."""
        x = images().to(memory_format=layout)
        layers = zip(network(ours).to(memory_format=layout), network(nn).to(memory_format=layout))
        for layer, twin in layers:
            y, judge = layer(x).detach(), twin(x)
            meta = copy.deepcopy(layer).to("meta")(x.to("meta"))
            assert meta.is_meta
            for other in (y, judge):
                assert (meta.shape, meta.stride(), meta.dtype) == (
                    other.shape,
                    other.stride(),
                    other.dtype,
                ), layer
            x = y

    def test_fake_tensor_mode(self):
        shapes = [p.shape for p in network().parameters()]
        with FakeTensorMode():
            y, grads = step(network(), images())
        assert y.shape == (3, 3)
        assert [g.shape for g in grads[1:]] == shapes


class TestFlops:
    def count(self, model, x):
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
        return counter.get_total_flops()

    @pytest.mark.parametrize("wanted", [False, True])
    def test_as_torch_counts(self, wanted):
        """Images that need no gradient save the work of one."""
        x = images().requires_grad_(wanted)
        assert self.count(network(groups=1), x) == self.count(network(nn, groups=1), x) > 0

    def test_groups(self):
        """torch counts a grouped weight gradient as if it were dense; we do not."""
        layer, x = (
            ours.Conv2d(4, 6, 3, groups=2, bias=False),
            torch.randn(2, 4, 5, 5, requires_grad=True),
        )
        assert self.count(layer, x) == 3 * 2 * (2 * 6 * 3 * 3) * (2 * 3 * 3)


class TestMemory:
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpoint(self, reentrant):
        grads = []
        for run in (lambda m, x: m(x), lambda m, x: checkpoint(m, x, use_reentrant=reentrant)):
            torch.manual_seed(0)
            model, x = network(), images().requires_grad_()
            run(model, x).square().sum().backward()
            grads.append([x.grad, *(p.grad for p in model.parameters())])
        close(*grads)

    def test_saved_tensor_hooks(self):
        packed = []

        def pack(tensor):
            packed.append(tensor)
            return tensor.clone()

        model, x = network(), images()
        expected = step(copy.deepcopy(model), x)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            close(step(model, x), expected)
        assert any(t is model[0].weight for t in packed)

    @pytest.mark.parametrize("which", ["input", "weight"])
    def test_changing_a_saved_tensor_in_place_raises(self, which):
        x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
        tensors = {"input": x.requires_grad_().clone(), "weight": w.requires_grad_().clone()}
        y = pyconv.ops.conv2d(tensors["input"], tensors["weight"])
        tensors[which].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: pyconv.ops.batch_norm(x, None, None, training=True),
            lambda x: pyconv.ops.batch_norm(
                x, x.new_zeros(2), x.new_ones(2), x.new_ones(2).requires_grad_()
            ),
        ],
    )
    def test_batch_norm_saves_its_input(self, function):
        x = torch.randn(2, 2, 5, 5, requires_grad=True).clone()
        y = function(x)
        x.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    def test_only_what_backward_reads_is_kept(self):
        """No gradient of the weight wanted: the image may change, and may be freed."""
        x, w = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3)
        image = x.clone()
        y = pyconv.ops.conv2d(image, w)
        image.mul_(2)
        y.sum().backward()
        assert x.grad is not None

    def test_running_statistics_count_as_modified(self):
        layer = ours.BatchNorm2d(2)
        before = layer.running_mean._version
        layer(torch.randn(2, 2, 5, 5))
        assert layer.running_mean._version > before

    def test_inference_mode(self):
        model, x = network().eval(), images()
        with torch.inference_mode():
            y = model(x)
        assert y.is_inference()
        close(y.clone(), model(x).detach())


def test_deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            step(network(), x := images()) if i == 0 else step(network(), x) for i in (0, 1)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    close(first, second, rtol=0, atol=0)


def test_gradient_penalty():
    """Double backward through the whole network, as WGAN-GP does it."""
    grads, x = [], images()
    for namespace in (ours, nn):
        model, inputs = network(namespace), x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        penalty = (slope.norm() - 1) ** 2
        grads.append(torch.autograd.grad(penalty, list(model.parameters()), materialize_grads=True))
    close(*grads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2])
def test_opcheck_convolution(dtype, layout, groups):
    """Schema, autograd registration, fake kernel, tracing with symbolic shapes: all of opcheck."""
    geometry = (2, 1, 1, 2, 1, 2, groups)  # stride, padding, dilation
    last = layout is torch.channels_last
    x = torch.randn(2, 4, 7, 8).to(dtype).to(memory_format=layout).requires_grad_()
    w = torch.randn(6, 4 // groups, 3, 3).to(dtype).to(memory_format=layout).requires_grad_()
    b = torch.randn(6).to(dtype).requires_grad_()
    dy = torch.ops.pyconv._conv2d(
        x.detach(), w.detach(), b.detach(), *geometry, ""
    ).requires_grad_()
    raw = torch.ops.pyconv
    opcheck(raw.conv2d.default, (x, w, b, *geometry, ""))
    opcheck(raw.conv2d_bwd_input.default, (dy, w, 7, 8, *geometry, last, ""))
    opcheck(raw.conv2d_bwd_weight.default, (dy, x, 3, 3, *geometry, last, ""))
    for t in (x, w, b, dy):
        t.requires_grad_(False)
    opcheck(raw._conv2d.default, (x, w, None, *geometry, ""))
