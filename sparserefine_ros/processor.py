# SPDX-License-Identifier: Apache-2.0
"""What the processor offers."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

import torch

# Where Linux keeps the limits of control groups, version 2, and in which of them this process is.
_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN_GROUP: Final = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores this process may run on; no more than a container's quota of time fills."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, math.ceil(min(_quotas(), default=cores))))


def _quotas() -> list[float]:
    """Cores' worth of time that this process's group and those around it may use."""
    groups = _own_groups()
    return [quota for group in groups if (quota := _quota(group)) is not None]


def _own_groups() -> list[Path]:
    """Folders of this process's group and of all around it, the root last."""
    try:
        lines = _OWN_GROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    # A container sees its own group as the root, or what lies outside of it as "..".
    names = [name for name in path.split("/") if name]
    depth = 0 if ".." in names else len(names)
    return [_GROUPS.joinpath(*names[:kept]) for kept in range(depth, -1, -1)]


def _quota(group: Path) -> float | None:
    """Cores' worth of time that a group may use; None for no limit."""
    try:
        # Microseconds of each period of so many: "200000 100000", or "max 100000" without a limit.
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether PyTorch multiplies bfloat16 on a device at the speed that one would expect.

    Elsewhere it gives the same results by way of float32: on a CPU without AVX-512 a hundred times
    slower than float32 itself.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return False
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True
