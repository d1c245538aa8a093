# SPDX-License-Identifier: Apache-2.0
"""Keeps the memory that a training step frees for the next one.

The C library asks the system for every large block anew and gives it back at once, and the system
fills each page with zeros first. A step on the CPU spends a quarter of its time on that.
"""

from __future__ import annotations

import ctypes
from typing import Final

# Names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_MAX: Final = -4

_STEP: Final = 256 << 20  # bytes asked for at a time
_NEVER: Final = -1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, until it ends; return whether the C library can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not the GNU C library
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _STEP))
    return all(mallopt(name, value) for name, value in settings)


def return_freed_memory() -> None:
    """Give it back this once: processes that are forked now would keep a copy of it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not the GNU C library
        return
