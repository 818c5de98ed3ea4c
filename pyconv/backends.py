"""Process-wide switches of the kernels, after torch.backends.

pyconv.backends.allow_winograd            # may convolutions use Winograd's algorithm?
pyconv.backends.allow_winograd = False    # from now on they may not
"""

from __future__ import annotations

import sys
import types

from pyconv import _native


class _Backends(types.ModuleType):
    @property
    def allow_winograd(self) -> bool:
        """Whether convolutions of more than one tap may run by Winograd's algorithm.

        It takes fewer products, 2.25 an output instead of 9 for 3x3, and rounds differently: the
        error is a few times that of a direct sum, and an inf or NaN spreads over a tile of up to 4x4
        pixels. True unless the environment says PYCONV_ALLOW_WINOGRAD=0. Without the compiled
        kernels there is no Winograd: False.

        Raises (on assignment): TypeError for anything but a bool.
        """
        return bool(_native.lib and _native.lib.allow_winograd())

    @allow_winograd.setter
    def allow_winograd(self, allow: bool) -> None:
        if not isinstance(allow, bool):
            raise TypeError(f"allow_winograd must be True or False, got {allow!r}")
        if _native.lib:
            _native.lib.set_allow_winograd(allow)


sys.modules[__name__].__class__ = _Backends
