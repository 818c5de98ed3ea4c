"""The IDX format of the MNIST files: one dense array behind a short big-endian header.

    bytes 0-1   zero
    byte  2     type: 0x08 uint8, 0x09 int8, 0x0B int16, 0x0C int32, 0x0D float32, 0x0E float64
    byte  3     number of dimensions D
    then        D sizes of four bytes each, then the values in row-major order, all big-endian

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File
formats". Bytes 0-3 read as one integer are the format's magic number: 2051 for images (uint8,
three dimensions), 2049 for labels (uint8, one dimension).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

IMAGES = 2051
LABELS = 2049

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_KINDS = {IMAGES: "images (uint8, 3 dimensions)", LABELS: "labels (uint8, 1 dimension)"}


class DataError(Exception):
    """A data file is missing or is not what its name says; the message is one sentence."""


def read_bytes(path: Path) -> bytes:
    """Return the contents of ``path``, unpacked if the first two bytes are gzip's."""
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if packed[:2] != b"\x1f\x8b":
        return packed
    try:
        return gzip.decompress(packed)
    except EOFError:
        raise DataError(
            f"{path}: truncated: the gzip stream ends after {len(packed):,} bytes, before its end "
            "marker"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged: gzip says {str(error)!r}") from None


def read_idx(path: str | Path, magic: int | None = None) -> Tensor:
    """Read an IDX file, plain or gzipped.

    Args:
        path: the file.
        magic: the magic number it must have, `IMAGES` or `LABELS`; None takes any.

    Raises:
        DataError: the file is missing, unreadable, truncated, too long, or of another kind.
    """
    path = Path(path)
    data = read_bytes(path)
    if len(data) < 4:
        raise DataError(f"{path}: truncated: {len(data)} bytes, an IDX header has at least 4")
    found = int.from_bytes(data[:4], "big")
    if magic is not None and found != magic:
        raise DataError(
            f"{path}: the magic number is {found}{_kind(found)}, expected {magic}{_kind(magic)}"
        )
    if data[:2] != b"\0\0" or data[2] not in _DTYPES:
        raise DataError(
            f"{path}: not an IDX file: it begins with bytes {data[:4].hex(' ')}, expected 00 00, "
            "a type from 08 to 0e and the number of dimensions"
        )
    dtype, ndim = np.dtype(_DTYPES[data[2]]), data[3]
    header = 4 + 4 * ndim
    if len(data) < header:
        raise DataError(
            f"{path}: truncated: {len(data)} bytes, the header alone has {header} for {ndim} "
            "dimensions"
        )
    shape = struct.unpack(f">{ndim}I", data[4:header])
    expected = header + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        fault = "truncated" if len(data) < expected else "too long"
        size = "x".join(map(str, shape)) or "one value"
        raise DataError(
            f"{path}: {fault}: {len(data):,} bytes unpacked, expected {expected:,} for {size} of "
            f"{dtype.name}"
        )
    values = np.frombuffer(data, dtype, offset=header).reshape(shape)
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")))  # a copy: torch may write to it


def _kind(magic: int) -> str:
    return f", {_KINDS[magic]}" if magic in _KINDS else ""


def write_idx(path: str | Path, values: Tensor) -> None:
    """Write a uint8 tensor as an IDX file, gzipped if the name ends in .gz; same bytes each time.

    Raises:
        ValueError: the tensor is not uint8.
    """
    if values.dtype != torch.uint8:
        raise ValueError(f"write_idx: values must be uint8, got {values.dtype}")
    header = struct.pack(f">HBB{values.dim()}I", 0, 0x08, values.dim(), *values.shape)
    data = header + values.numpy().tobytes()
    path = Path(path)
    path.write_bytes(gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)
