"""Process-wide switches of the kernels, after torch.backends.

    pyconv.backends.allow_winograd            # may convolutions use Winograd's algorithm?
    pyconv.backends.allow_winograd = False    # from now on they may not
    pyconv.backends.cuda.allow_tf32 = True    # float32 convolutions may run on the tensor cores

PYCONV_ALLOW_WINOGRAD and PYCONV_ALLOW_TF32 in the environment set them at the start.
"""

from __future__ import annotations

import sys
import types

from pyconv import _native


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


class _Cuda:
    """Switches of the CUDA kernels, on a GPU or in the emulator."""

    @property
    def allow_tf32(self) -> bool:
        """Whether float32 convolutions on CUDA may round their operands to TF32, for tensor cores.

        TF32 has float32's range and 10 bits of mantissa: each operand errs by up to 2^-11 of
        itself, as in float16; sums are kept in float32. False unless the environment says
        PYCONV_ALLOW_TF32=1. Without the compiled kernels: False.

        Raises (on assignment): TypeError for anything but a bool.
        """
        return bool(_native.lib and _native.lib.allow_tf32())

    @allow_tf32.setter
    def allow_tf32(self, allow: bool) -> None:
        allow = _bool("cuda.allow_tf32", allow)
        if _native.lib:
            _native.lib.set_allow_tf32(allow)


class _Backends(types.ModuleType):
    cuda = _Cuda()

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
        allow = _bool("allow_winograd", allow)
        if _native.lib:
            _native.lib.set_allow_winograd(allow)


sys.modules[__name__].__class__ = _Backends
