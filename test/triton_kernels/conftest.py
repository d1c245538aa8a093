# SPDX-License-Identifier: Apache-2.0
"""Where there is no GPU, the kernels are defined for Triton's interpreter.

Triton decides when it is imported. So that happens here, and the variable is gone again before any
other test runs.
"""

from __future__ import annotations

import contextlib
import os

import pytest
import torch

VARIABLE = "TRITON_INTERPRET"
HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    with contextlib.suppress(ImportError):
        from sparserefine_ros.triton_kernels import fusion, gradient, topology, unet  # noqa: F401
    del os.environ[VARIABLE]
    if before is not None:
        os.environ[VARIABLE] = before


@pytest.fixture(autouse=True)
def _ask_for_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_GPU:
        monkeypatch.setenv(VARIABLE, "1")


@pytest.fixture
def device() -> torch.device:
    """A GPU, or the CPU for the interpreter."""
    return torch.device("cuda" if HAS_GPU else "cpu")
