"""Decompression into existing memory, with raw bytes as dictionary, by one call of zstd.

python-zstandard can do that only through an object per dictionary (a copy of its bytes, a decompression context) and a
stream per frame. All of this holds the interpreter's lock, for longer than decoding a small frame takes: two threads
drew fewer clips of Push-T than one (measured: 4,400 and 5,400 per second). So zstd's own function is called through
ctypes, in the library that python-zstandard's wheels bring along; where it cannot be found, python-zstandard serves.
The standard library's module (Python 3.14; backports.zstd 1.8 before) lets go of the lock, but has no output of the
caller's and a context per call: 15,600 frames with a little change per second of CPU, with its dictionary at hand
already, against 59,200 (interleaved medians of 15, on one thread; the same on two).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import weakref
from functools import cache
from typing import Any, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
_IGNORE_CHECKSUM = 1002  # ZSTD_d_forceIgnoreChecksum


class Decompressor(Protocol):
    """A decompressor, for one thread."""

    def into(self, out: Bytes, data: bytes | memoryview, dictionary: Bytes | None = None, check: bool = True) -> None:
        """Decompresses consecutive zstd frames.

        Args:
            out: Output: contiguous, with exactly their total size.
            data: The frames, compressed.
            dictionary: Their dictionary.
            check: Whether to verify the checksums of their contents.

        Raises:
            ValueError: If a frame is damaged, or they are of another size.
        """


def make_decompressor() -> Decompressor:
    """Returns the faster one that works here."""
    library = _library()
    return _Portable() if library is None else _Direct(library)


class _Direct:
    def __init__(self, library: Any) -> None:
        self._zstd = library
        self._decompress = library.ZSTD_decompress_usingDict
        self._contexts = [self._make_context(ignore) for ignore in (1, 0)]  # indexed by `check`

    def into(self, out: Bytes, data: bytes | memoryview, dictionary: Bytes | None = None, check: bool = True) -> None:
        source = data if isinstance(data, bytes) else bytes(data)
        key, key_size = (None, 0) if dictionary is None else (_address(dictionary), dictionary.nbytes)
        size = self._decompress(self._contexts[check], _address(out), out.nbytes, source, len(source), key, key_size)
        if size != out.nbytes:
            error = self._zstd.ZSTD_isError(size)
            why = self._zstd.ZSTD_getErrorName(size).decode() if error else f"it has {size:,} bytes"
            raise ValueError(f"a compressed frame is damaged ({why})")

    def _make_context(self, ignore_checksum: int) -> int:
        context = self._zstd.ZSTD_createDCtx()
        if not context:
            raise MemoryError("no memory for decompression")
        weakref.finalize(self, self._zstd.ZSTD_freeDCtx, context)
        self._zstd.ZSTD_DCtx_setParameter(context, _IGNORE_CHECKSUM, ignore_checksum)
        return int(context)


class _Portable:
    def into(self, out: Bytes, data: bytes | memoryview, dictionary: Bytes | None = None, check: bool = True) -> None:
        key = None
        if dictionary is not None:
            key = zstandard.ZstdCompressionDict(dictionary.tobytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        stream = zstandard.ZstdDecompressor(dict_data=key).stream_reader(data, read_across_frames=True)
        try:
            if stream.readinto(out.data.cast("B")) != out.nbytes or stream.read(1):
                raise ValueError("a compressed frame is damaged (it is of another size)")
        except zstandard.ZstdError as error:
            raise ValueError(f"a compressed frame is damaged ({error})") from None


def _address(array: Bytes) -> int:
    return int(array.__array_interface__["data"][0])


@cache
def _library() -> Any:
    """Returns zstd's C library, or None where the wheel of python-zstandard does not bring it."""
    spec = importlib.util.find_spec("zstandard._cffi")
    if spec is None or spec.origin is None:
        return None
    try:
        # Bound at once and to itself: PyOpenGL makes every symbol of Mesa global, LLVM's libzstd among them, and calls
        # within this library would then land in that other version, which decodes to garbage or crashes.
        library = ctypes.CDLL(spec.origin, mode=os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        for name, result, *arguments in (
            ("ZSTD_createDCtx", pointer),
            ("ZSTD_freeDCtx", size, pointer),
            ("ZSTD_DCtx_setParameter", size, pointer, ctypes.c_int, ctypes.c_int),
            ("ZSTD_decompress_usingDict", size, pointer, pointer, size, ctypes.c_char_p, size, pointer, size),
            ("ZSTD_isError", ctypes.c_uint, size),
            ("ZSTD_getErrorName", ctypes.c_char_p, size),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library if sys.platform != "linux" or hasattr(os, "RTLD_DEEPBIND") else None
