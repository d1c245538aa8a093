# SPDX-License-Identifier: Apache-2.0
"""What every benchmark needs: repeated timing, peak memory, the machine."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from sparserefine_ros.files import write_text_whole
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.processor import available_cores

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_RUNS: Final = 20
_FEWEST_RUNS: Final = 3
_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Spread:
    """Distribution of one time over the frames, milliseconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Spread:
        """Median, 10th and 90th percentile."""
        low, median, high = np.percentile(milliseconds, (10, 50, 90))
        return cls(float(median), float(low), float(high))


def time_calls(call: Callable[[], object]) -> tuple[Spread, int]:
    """Spread and number of calls: 20, or as many as fit in 20 seconds, but no fewer than 3."""
    call()
    taken: list[float] = []
    while len(taken) < _RUNS and (len(taken) < _FEWEST_RUNS or sum(taken) < 1e3 * _SECONDS):
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return Spread.of(taken), len(taken)


def describe_machine() -> str:
    """Processor, cores, what our kernels use of it, and versions, in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))
        model = found[1] if found else model
    kernels = compiled_kernels()
    used = kernels.name if kernels else "no compiled kernels"
    return (
        f"{model}, {available_cores()} cores, {used}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def resident_mb() -> float:
    """Resident size of this process."""
    return _status_mb("VmRSS")


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, or since `forget_peak_memory`."""
    return _status_mb("VmHWM")


def forget_peak_memory() -> float:
    """Let the peak start again from what is in use now, where the system allows it.

    What was freed goes back to the system first; what comes next would take it unnoticed.

    Returns:
        MB resident.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # of the GNU C library
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_mb()


def _status_mb(field: str) -> float:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return float("nan")
    found = re.search(rf"^{field}:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else float("nan")


def write_figures(figures: Sequence[DataclassInstance], path: Path) -> None:
    """Write figures, such as `Figures`, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [asdict(figure) for figure in figures]
    write_text_whole(path, json.dumps(content, indent=2) + "\n")
