"""Fetching the canonical files, verified before they get their name."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from .catalogue import CATALOGUE
from .idx import DataError

TIMEOUT = 30  # seconds without an answer


def cache_folder() -> Path:
    """Where downloads go without --root: $PYCONV_CACHE, else the user's cache folder."""
    if "PYCONV_CACHE" in os.environ:
        return Path(os.environ["PYCONV_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyconv"


def download(name: str, folder: Path) -> None:
    """Put the four gzipped files of data set ``name`` into ``folder``; keep those already there.

    A file appears under its name only when it is complete and its MD5 is right.

    Raises:
        DataError: no network, a wrong checksum, or a file in ``folder`` that is not the canonical
            one.
    """
    entry = CATALOGUE[name]
    for stem, md5 in entry.md5.items():
        path = folder / f"{stem}.gz"
        if path.exists():
            found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            if found != md5:
                raise DataError(
                    f"{path}: not the canonical file (MD5 {found}, expected {md5}): delete it, or "
                    "leave out --download to use it as it is"
                )
            continue
        data = _fetch(entry.url + path.name, md5)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def _fetch(url: str, md5: str) -> bytes:
    """Return what ``url`` serves, once its MD5 is known to be right."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            data = answer.read()
    except (urllib.error.URLError, OSError, EOFError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{url}: cannot be downloaded ({reason}): without a network, leave out --download to "
            "use the embedded subset, or name a folder of the files with --root"
        ) from None
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{url}: MD5 is {found}, expected {md5}: the download was discarded")
    return data
