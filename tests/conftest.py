"""Every test starts from the same seed, the same instruction set and one thread."""

import pytest
import torch

from pyconv import _native


@pytest.fixture(autouse=True)
def fresh_start():
    threads, isa = torch.get_num_threads(), _native.lib and _native.lib.isa()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    if isa:
        _native.lib.set_isa(isa)


@pytest.fixture(params=_native.lib.available_isas() if _native.lib else [])
def isa(request):
    """Runs the test once for every instruction set this CPU has."""
    _native.lib.set_isa(request.param)
    return request.param
