# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from sparserefine_ros.processor import available_cores, multiplies_bfloat16


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_are_those_this_process_may_use() -> None:
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, everything)
    assert available_cores() == len(everything)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of x86-64")
def test_bfloat16_needs_vectors_that_convert_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert multiplies_bfloat16(torch.device("cpu")) == bool(flags & {"avx512bw", "avx_ne_convert"})
