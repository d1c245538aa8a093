# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sparserefine_ros.training import memory
from sparserefine_ros.training.memory import keep_freed_memory, return_freed_memory

_PROGRAM = """
import resource, sys
import numpy as np
from sparserefine_ros.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def touch():
    np.ones(100 << 20, np.uint8)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str, environment: dict[str, str]) -> int:
    command = [sys.executable, "-c", _PROGRAM, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can")
def test_the_system_is_asked_once(package_environment: dict[str, str]) -> None:
    # 100 MB are 25,600 pages of 4 kB, or 50 where the system hands out large ones.
    assert page_faults("keep", package_environment) < 20
    assert page_faults("default", package_environment) > 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can")
def test_more_than_2_gib_are_kept_until_they_are_returned(
    package_environment: dict[str, str],
) -> None:
    program = """
import ctypes
import numpy as np
from sparserefine_ros.training.memory import keep_freed_memory, return_freed_memory
sbrk = ctypes.CDLL(None).sbrk
sbrk.restype = ctypes.c_void_p
first = sbrk(0)
assert keep_freed_memory()
np.empty(5 << 29, np.uint8)  # not touched: it costs no memory
kept = sbrk(0) - first
return_freed_memory()
print(kept >> 20, (sbrk(0) - first) >> 20)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=package_environment, capture_output=True, text=True, check=True
    )
    kept_mb, left_mb = (int(text) for text in done.stdout.split())
    assert kept_mb > 2560
    assert left_mb < 300


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
    return_freed_memory()
