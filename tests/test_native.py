"""The compiled half: what it tells Python, and what happens without it."""

import inspect
import os
import re
import subprocess
import sys

import pytest
import torch

import pyconv
from pyconv import _native, reference

native = pytest.mark.skipif(_native.lib is None, reason=_native.reason)


def python(code, **environment):
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return run.returncode, run.stdout, run.stderr


@native
def test_the_reference_has_the_schemas_of_the_kernels():
    operators = [name for name, f in vars(reference).items() if inspect.isfunction(f)]
    assert len(operators) == 24
    for name in operators:
        schema = torch.library.infer_schema(getattr(reference, name), mutates_args=())
        ours = re.sub(r"^pyconv::\w+", "", str(getattr(torch.ops.pyconv, name).default._schema))

        def types(text):
            text = re.sub(r"\w+\) ?$", ")", text.replace("SymInt", "int"))
            return re.findall(r"(Tensor\??|int|bool|float|str) (\w+)", text.split("->")[0])

        assert types(schema) == types(ours), name


@native
def test_instruction_sets_are_listed_and_chosen():
    isas = _native.lib.available_isas()
    assert isas[0] == "portable"
    assert _native.lib.isa() == os.environ.get("PYCONV_ISA", isas[-1])
    for name in isas:
        _native.lib.set_isa(name)
        assert _native.lib.isa() == name
    with pytest.raises(
        ValueError, match='no ISA "mmx"; there are portable, avx2, avx512, avx512_bf16'
    ):
        _native.lib.set_isa("mmx")


@native
@pytest.mark.parametrize("name", _native.lib.available_isas() if _native.lib else [])
def test_the_environment_chooses_the_instruction_set(name):
    code, out, err = python("import pyconv; print(pyconv._native.lib.isa())", PYCONV_ISA=name)
    assert (code, out) == (0, f"{name}\n"), err


@native
def test_the_log_names_who_was_asked():
    code, _, err = python(
        "import torch, pyconv; pyconv.ops.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))",
        PYCONV_LOG="1",
    )
    assert code == 0
    assert f"pyconv: conv2d fwd: {pyconv.algorithms('conv2d')[0]}: " in err
    assert ": runs\n" in err


def test_without_the_compiled_half_the_reference_runs():
    """A model trains one step on plain PyTorch, and computes what the kernels compute."""
    script = """
import torch, pyconv, pyconv.nn as nn
assert pyconv._native.lib is None and "PYCONV_NATIVE" in pyconv._native.reason
assert pyconv.algorithms("conv2d") == ["reference"]
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.AvgPool2d(2),
                      nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d(2), nn.ConvTranspose2d(4, 2, 3, stride=2))
x = torch.randn(2, 1, 16, 16)
loss = model(x).square().mean()
loss.backward()
print(loss.item(), sum(p.grad.abs().sum().item() for p in model.parameters()))
"""
    code, out, err = python(script, PYCONV_NATIVE="0")
    assert code == 0, err
    if _native.lib is not None:
        code, expected, err = python(
            script.replace(
                'assert pyconv._native.lib is None and "PYCONV_NATIVE" in pyconv._native.reason', ""
            ).replace('assert pyconv.algorithms("conv2d") == ["reference"]', "")
        )
        assert code == 0, err
        slow, fast = (torch.tensor([float(v) for v in text.split()]) for text in (out, expected))
        torch.testing.assert_close(slow, fast, rtol=1e-4, atol=1e-5)


def test_a_broken_library_is_named_once(tmp_path):
    """The reason is kept and shown as one warning; nothing crashes."""
    code, out, err = python(
        "import sys; sys.modules['pyconv._C'] = None\nimport pyconv; print(pyconv._native.reason)",
    )
    assert code == 0, err
    assert "pyconv._C could not be loaded" in out
    assert err.count("pyconv._C could not be loaded") == 1
