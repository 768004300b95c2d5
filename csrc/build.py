"""Describes the extension `hyperplane._native` to cffi: every C file beside this one, made into one abi3 module.

`hyperplane.cdef.h` is the only list of what Python may call: cffi reads it as it stands, the C compiler checks it
against the engine through `hyperplane.h`.

`HYPERPLANE_SANITIZE` (for instance `address,undefined` or `thread`) makes the variant that the tests run under
a sanitizer: see docs/development.md.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

# Relative to setup.py: setuptools refuses absolute paths in an sdist.
CSRC = Path(__file__).parent
SANITIZE = os.environ.get("HYPERPLANE_SANITIZE", "")

# No -march: a wheel runs on every CPU of its architecture; SSE2 is part of x86-64 and guarded by __SSE2__ elsewhere.
# Nothing but the module's init function is exported, so calls between our files need no PLT.
COMPILE = ["-std=gnu11", "-fvisibility=hidden", "-fno-semantic-interposition", "-Werror=implicit-function-declaration"]
# Without SLP: counters that stand together would be gathered into vectors, which costs more than two additions.
OPTIMIZE = ["-O3", "-fno-tree-slp-vectorize", "-g"]
# Asserts are on, and the first finding ends the process: a test that goes on after one would hide it.
CHECK = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g3", "-UNDEBUG"]

ffibuilder = FFI()
ffibuilder.cdef((CSRC / "hyperplane.cdef.h").read_text(encoding="utf-8"))
ffibuilder.set_source(
    "hyperplane._native",
    '#include "hyperplane.h"',
    sources=[str(path) for path in sorted(CSRC.glob("*.c"))],
    include_dirs=[str(CSRC)],
    depends=[str(path) for path in sorted(CSRC.glob("*.h"))],
    libraries=["uring"],
    extra_compile_args=COMPILE + (CHECK if SANITIZE else OPTIMIZE),
    extra_link_args=[f"-fsanitize={SANITIZE}"] if SANITIZE else [],
)
