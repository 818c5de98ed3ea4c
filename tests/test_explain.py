"""explain: the kernel it names is the kernel that runs, and every refusal is a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyconv
from pyconv import _native, ops
from pyconv._conv_string import conv2d
from pyconv._explain import PASSES, explain_case, workspace
from tests.cases import CONV2D

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pyconv", "explain", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CONV2D, ids=str)
def test_every_refusal_is_a_sentence_and_forcing_agrees(case, channels_last):
    found = explain_case(case, torch.float32, channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, w = (
        torch.randn(case.x).to(memory_format=layout),
        torch.randn(case.w).to(memory_format=layout),
    )
    for p in found.passes:
        assert [k.name for k in p.candidates] == pyconv.algorithms("conv2d")
        for k in p.candidates:
            assert not k.cannot or len(k.cannot.split()) > 3
            assert not k.refuses or len(k.refuses.split()) > 3
            assert not (k.cannot and not k.refuses), "a kernel that cannot must not be chosen"
            assert k.line > 0, k.source
            line = Path(k.source).read_text().splitlines()[k.line - 1]
            assert f"{p.name}(" in line, k.where
    if channels_last and x.is_contiguous() and w.is_contiguous():
        return  # in both layouts at once: the call is NCHW
    for k in found.passes[0].candidates:
        if k.cannot:
            with pytest.raises(ValueError, match="cannot run fwd here: ") as error:
                ops.conv2d(x, w, **case.arguments, algorithm=k.name)
            assert str(error.value).endswith(k.cannot)
        else:
            ops.conv2d(x, w, **case.arguments, algorithm=k.name)


def test_the_kernel_named_is_the_kernel_that_runs():
    case = conv2d("mb2ic5ih14oc18kh3ph1")
    chosen = explain_case(case).passes[0].chosen
    x, w = torch.randn(case.x), torch.randn(case.w)
    y = ops.conv2d(x, w, **case.arguments)
    assert torch.equal(y, ops.conv2d(x, w, **case.arguments, algorithm=chosen))


def test_counts():
    found = explain_case(conv2d("mb4g96ic96ih56oc96oh56kh7ph3"))
    assert found.flops == 2 * 4 * 96 * 56 * 56 * 49
    assert found.bytes == 4 * (2 * 4 * 96 * 56 * 56 + 96 * 49)
    for p in found.passes:
        assert p.bound == max(found.flops / found.roof.flops, found.bytes / found.roof.bandwidth)


def test_workspace_is_what_one_call_asks_for():
    case = conv2d("mb2ic16ih20oc16kh3ph1")
    explained = explain_case(case).passes[0]
    fresh = workspace(case, torch.float32, False, "fwd", explained.chosen)
    assert fresh == explained.workspace[explained.chosen] > 0
    workspace(conv2d("mb1ic64ih40oc64kh3ph1"), torch.float32, False, "fwd", explained.chosen)
    assert workspace(case, torch.float32, False, "fwd", explained.chosen) == fresh
    assert workspace(case, torch.float32, False, "fwd", "reference") == 0


def test_layers_functions_and_measurement():
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    x = torch.randn(2, 3, 10, 10)
    from_layer = pyconv.explain(layer, x)
    from_call = pyconv.explain(
        ops.conv2d, x, layer.weight, layer.bias, padding="same", measure=True
    )
    assert str(from_layer.case) == str(from_call.case) == conv2d("mb2ic3ih10oc8kh3ph1").text
    for p in from_call.passes:
        able = [k.name for k in p.candidates if not k.cannot]
        assert sorted(p.seconds) == sorted([*able, "torch"])
        assert sorted(p.workspace) == sorted(able)
        assert all(seconds > 0 for seconds in p.seconds.values())
    assert "of the roof" in str(from_call)
    with pytest.raises(TypeError, match="expected a Conv2d, pooling or batch-norm layer"):
        pyconv.explain(torch.nn.Linear(2, 2), x)


def test_command_line():
    run = command("--conv", "ic96ih56oc96oh56kh7ph3g96", "--batch", "4", "--channels-last")
    assert run.returncode == 0, run.stderr
    assert "96 -> 96, 7x7" in run.stdout
    assert "(4, 96, 56, 56) channels_last" in run.stdout
    for name in PASSES:
        assert f"{name}: " in run.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ic96ih56", "has no oc, kh"),
        ("ic3ih8oc4kh3qq7", "got 'qq'"),
        ("ic3ih8oc4kh3oh7", "gives an output of 6 x 6"),
        ("ic3ih2oc4kh3", "Kernel size can't be greater"),
    ],
)
def test_mistakes_in_a_conv_string_are_one_sentence(text, message):
    run = command("--conv", text)
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_conv_strings_round_trip():
    for case in CONV2D:
        assert conv2d(case.text).text == case.text
    assert conv2d('mb4ic3ih8oc4kh3n"a_name"').name == "a_name"
