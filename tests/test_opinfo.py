"""torch's own samples: every OpInfo sample of the operators, in float32, through every CUDA kernel."""

from unittest import mock

import pytest
import torch

from pyconv import ops
from tests.backends import cuda_kernels

# The import would forbid the whole process to assign torch.backends' flags, which training does.
with mock.patch.object(torch.backends, "disable_global_flags"):
    from torch.testing._internal.common_methods_invocations import op_db

OPERATORS = ("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm")
LISTED_AS = {"adaptive_avg_pool2d": "avg_pool2d"}  # in pyconv.algorithms()
INFO = {
    op: next(o for o in op_db if (o.name, o.variant_test_name) == (f"nn.functional.{op}", ""))
    for op in OPERATORS
}


def judged(values):
    """The same arguments for the judge, in float64."""
    return [
        v.detach().double().requires_grad_(v.requires_grad)
        if isinstance(v, torch.Tensor) and v.is_floating_point()
        else v
        for v in values
    ]


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def gradients(result, inputs, upstream):
    wanted = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
    return torch.autograd.grad(outputs(result)[0], wanted, upstream) if wanted else ()


def both(op, sample, algorithm):
    """(ours, torch's in float64): results, then gradients, then what was written into arguments."""
    arguments = [sample.input, *sample.args, *sample.kwargs.values()]
    names, plain = list(sample.kwargs), len(sample.args) + 1
    mine = [
        v.detach().clone().requires_grad_(v.requires_grad) if isinstance(v, torch.Tensor) else v
        for v in arguments
    ]
    theirs = judged(arguments)

    def call(function, values, **more):
        return function(*values[:plain], **dict(zip(names, values[plain:])), **more)

    result = call(getattr(ops, op), mine, algorithm=algorithm)
    right = call(getattr(torch.nn.functional, op), theirs)
    upstream = torch.randn_like(outputs(result)[0])
    left = [*outputs(result), *gradients(result, mine, upstream), *mine]
    return left, [*outputs(right), *gradients(right, theirs, upstream.double()), *theirs]


# Kernels that take no sample: all of them are float32 in NCHW.
NEEDS = {
    "tensor_cores": r"needs bfloat16 or float16, or .*allow_tf32",
    "depthwise": r"needs (one channel per group|channels_last)",
}
# The shapes of samples that no kernel takes, and why: a batch norm of no channel has no axis to call one.
REFUSED = {
    "batch_norm": ({(0,)}, r"batch_norm: input must be \(N, C\), .* got 1-D of shape \(0,\)")
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("op", "algorithm"),
    [
        (op, kernel)
        for op in OPERATORS
        for kernel in cuda_kernels(LISTED_AS.get(op, op))
        if kernel.backend != "emu"  # chk computes the same, and watches
    ],
    ids=str,
)
def test_every_sample(op, algorithm):
    shapes, why = REFUSED.get(op, (set(), ""))
    device = "cuda" if algorithm.backend == "cuda" else "cpu"
    samples = list(INFO[op].sample_inputs(device, torch.float32, requires_grad=True))
    assert samples
    for sample in samples:
        if algorithm in NEEDS:
            shapes, why = {sample.input.shape}, NEEDS[algorithm]
        if sample.input.shape in shapes:
            with pytest.raises(ValueError, match=why):
                both(op, sample, algorithm)
            continue
        for mine, theirs in zip(*both(op, sample, algorithm), strict=True):
            if isinstance(theirs, torch.Tensor):
                torch.testing.assert_close(
                    mine, theirs.to(mine.dtype), equal_nan=True, msg=lambda m, s=sample: f"{s}: {m}"
                )


@pytest.mark.parametrize("op", [op for op in OPERATORS if INFO[op].error_inputs_func])
def test_what_torch_refuses_is_refused(op):
    for error in INFO[op].error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises((RuntimeError, ValueError, TypeError), match=rf"^{op}: "):
            getattr(ops, op)(sample.input, *sample.args, **sample.kwargs)
