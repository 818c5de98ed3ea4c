"""What else a user of torch could run a model on: torch.compile, onnxruntime, OpenVINO. Forward, on the CPU.

The last two get the model as torch.onnx exports it, with weights as constants, so that they may pack them once.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .subject import Unable
from .summary import FUSED, PACKED

# name: modules that must be importable
NEEDS: dict[str, tuple[str, ...]] = {
    "torch.compile": (),
    "onnxruntime": ("onnxruntime", "onnxscript"),
    "openvino": ("openvino", "onnxscript"),
}


def missing(player: str) -> str:
    """Why the peer cannot run here at all, or ""."""
    absent = [m for m in NEEDS.get(player, ()) if importlib.util.find_spec(m) is None]
    if absent:
        return f"{player} is left out: {' and '.join(absent)} not installed (pip install .[bench])"
    return ""


def require(player: str, task: dict[str, Any]) -> None:
    """Raises Unable where the peer has no such thing."""
    if player not in (*NEEDS, PACKED, FUSED):
        return
    if task.get("pass", "fwd") != "fwd" or task.get("mode", "infer") != "infer":
        raise Unable(f"{player} is timed in inference only")
    if player in ("onnxruntime", "openvino"):
        if task["layout"] != "NCHW":
            raise Unable(f"{player} takes NCHW only")
        if task.get("dtype", "float32") != "float32":
            raise Unable(f"{player} is timed in float32 only")


def inference(player: str, model: Module, x: Tensor) -> Callable[[], Tensor]:
    """`model` on `x` as the peer runs it, with torch's number of threads."""
    make = {"torch.compile": _compiled, "onnxruntime": _onnxruntime, "openvino": _openvino}[player]
    return make(model.eval(), x)


def _compiled(model: Module, x: Tensor) -> Callable[[], Tensor]:
    torch._dynamo.reset()  # or the code of many layers piles up on one frame until it gives up
    compiled = torch.compile(model)

    def call() -> Tensor:
        with torch.inference_mode():
            return compiled(x)

    return call


def _onnx(model: Module, x: Tensor) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (x,), dynamo=True, input_names=["x"], output_names=["y"], verbose=False
        )
    assert program
    return program.model_proto.SerializeToString()


def _onnxruntime(model: Module, x: Tensor) -> Callable[[], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        _onnx(model, x), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _openvino(model: Module, x: Tensor) -> Callable[[], Tensor]:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(_onnx(model, x)),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",  # where the CPU has bfloat16 it would take that
        },
    )
    request = compiled.create_infer_request()
    feed = {0: x.numpy()}
    return lambda: torch.from_numpy(request.infer(feed, share_inputs=True, share_outputs=True)[0])
