"""Decompression is not led astray by other versions of zstd in the same process."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, gc, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # as PyOpenGL loads Mesa, and with it LLVM's libzstd
import numpy as np, zstandard
from lewm_gym.data.zstd import make_decompressor
raw = np.random.default_rng(0).integers(0, 4, 150528).astype(np.uint8)
data = zstandard.ZstdCompressor(level=10).compress(raw.tobytes())
decompressor, out = make_decompressor(), np.empty_like(raw)
for check in (True, False):
    out[:] = 9
    decompressor.into(out, data, None, check)
    assert (out == raw).all()
del decompressor
gc.collect()
"""


def test_another_version_with_global_symbols_changes_nothing():
    library = ctypes.util.find_library("zstd")
    if library is None:
        pytest.skip("no libzstd on this system")
    done = subprocess.run([sys.executable, "-c", SCRIPT, library], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
