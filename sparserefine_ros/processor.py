# SPDX-License-Identifier: Apache-2.0
"""What the processor offers."""

from __future__ import annotations

import os

import torch


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
