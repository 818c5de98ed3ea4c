"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from pyconv.data import DataError

FORMAT = 1  # raised when the contents change so that an older file cannot be resumed


def save(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` to ``path`` atomically.

    The bytes reach the disk under another name before the file gets its own, so whatever stops the
    process leaves either the previous checkpoint or the new one.

    Raises:
        DataError: the file cannot be written.
    """
    buffer = BytesIO()
    torch.save(state, buffer)
    part = path.with_name(path.name + ".tmp")
    try:
        with open(part, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename, too
        finally:
            os.close(folder)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def load(path: Path) -> dict[str, Any]:
    """Return what `save` wrote, tensors on the CPU.

    Raises:
        DataError: the file is missing, damaged, or not a checkpoint of this program.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, so there is no run to resume") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: damaged, or not a checkpoint: {reason}") from None
    if not isinstance(state, dict) or "format" not in state:
        raise DataError(f"{path}: not a checkpoint of pyconv train: it has no format number")
    if state["format"] != FORMAT:
        raise DataError(f"{path}: checkpoint format {state['format']}, expected {FORMAT}")
    return state
