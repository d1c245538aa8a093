# SPDX-License-Identifier: Apache-2.0
"""Kernels compile to machine code of a GPU that need not be there.

The interpreter takes what the compiler refuses: types that do not agree, shapes that are no power
of two, products that are too small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux, x86-64)")

PROGRAM = Path(__file__).parent / "compile_for_gpu.py"
KERNELS = {
    "_convolve_kernel", "_finish_kernel", "_mark_kernel", "_table_kernel", "_up_kernel",
    "_summarise_kernel", "_fuse_kernel", "_weight_gradient_kernel",
}  # fmt: skip


def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM), "90", "fp16"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == KERNELS
    products = {"_convolve_kernel", "_weight_gradient_kernel"}
    assert all(kernel["tensor_cores"] for kernel in kernels if kernel["kernel"] in products)
    # Double precision is a slip: a literal or an integer division that became float64.
    assert not any(kernel["double"] for kernel in kernels)
