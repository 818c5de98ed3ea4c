"""Every page of the docs that is a program runs: what its text names is asserted in it."""

import runpy
from pathlib import Path

import pytest

from pyconv import _native

PAGES = sorted((Path(__file__).parents[1] / "docs/course").glob("*.py"))


@pytest.mark.skipif(_native.lib is None, reason=_native.reason)
@pytest.mark.filterwarnings("ignore:.*non-interactive")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_page_runs(page, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(page))
    plt.close("all")
    assert list(tmp_path.iterdir()) == []


def test_there_are_pages():
    assert [page.stem[:3] for page in PAGES[:9]] == [f"ch{i}" for i in range(1, 10)]
