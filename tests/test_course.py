"""Every page of the course runs: the numbers that its text names are asserted in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyconv import _native

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/course").glob("ch*.py"))


@pytest.mark.skipif(_native.lib is None, reason=_native.reason)
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_page_runs(page, tmp_path):
    pytest.importorskip("matplotlib")
    environment = {
        **os.environ,
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore:.*non-interactive", str(page)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_there_are_pages():
    assert len(PAGES) >= 3
