"""Every test starts from the same seed, the same instruction set and one thread, on the backend of its parameters."""

import pytest
import torch

from pyconv import _native
from tests.backends import backend_of


@pytest.fixture(autouse=True)
def fresh_start(request):
    threads, isa = torch.get_num_threads(), _native.lib and _native.lib.isa()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with backend_of(request):
        yield
    torch.set_num_threads(threads)
    if isa:
        _native.lib.set_isa(isa)


@pytest.fixture(params=_native.lib.available_isas() if _native.lib else [])
def isa(request):
    """Runs the test once for every instruction set this CPU has."""
    _native.lib.set_isa(request.param)
    return request.param


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")
