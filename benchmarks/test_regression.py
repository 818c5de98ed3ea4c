"""The regression set: our kernels on the smoke layers and two small networks, by pytest-benchmark.

    make regression

It saves every run in .benchmarks and fails where a median is a quarter slower than in the run before. Not part of the
test suite: seconds are only comparable on one idle machine.
"""

from __future__ import annotations

import pytest
import torch

from pyconv._explain import PASSES, candidate_call

from . import conv2d, networks

pytest.importorskip("pytest_benchmark", reason="pip install .[bench]")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("case", conv2d.chosen("smoke"), ids=str)
def test_layer(benchmark, case, direction, layout):
    torch.manual_seed(0)
    benchmark.extra_info["layer"] = case.text
    benchmark(candidate_call(case, torch.float32, layout == "NHWC", direction, ""))


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_network(benchmark, name, mode):
    twin = networks.twin(name, None, channels_last=False)
    if mode == "train":
        benchmark(networks.training_step(networks.model_of("pyconv", twin), twin))
    else:
        benchmark(networks.inference("pyconv", twin))
