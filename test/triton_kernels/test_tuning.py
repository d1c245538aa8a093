# SPDX-License-Identifier: Apache-2.0
"""When the tuner is asked, and what is left of it afterwards; no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip(
    "triton", reason="Triton is not installed: pip install triton (Linux, x86-64)"
)

from sparserefine_ros.triton_kernels.convolution import _configurations  # noqa: E402
from sparserefine_ros.triton_kernels.tuning import (  # noqa: E402
    COMPILES_SIDE_BY_SIDE,
    TunedKernel,
    suits_precision,
)

CHOICE = triton.Config({"BLOCK_M": 64}, num_warps=2)


class FakeTuner:
    """Chooses one tile, and counts; the kernel beneath notes what it is launched with."""

    def __init__(self) -> None:
        self.asked, self.launched = 0, []
        self.fn = {None: lambda *args, **named: self.launched.append((args, named))}
        self.nargs: Any = None
        self.fails = False

    def __getitem__(self, grid: None) -> Any:
        return self._run

    def _run(self, *args: Any, **named: Any) -> None:
        self.asked, self.nargs = self.asked + 1, args
        if self.fails:
            raise torch.OutOfMemoryError("none left")
        self.best_config = CHOICE


@pytest.fixture
def tuner() -> FakeTuner:
    return FakeTuner()


@pytest.fixture
def kernel(tuner: FakeTuner) -> TunedKernel:
    made = TunedKernel(
        triton.jit(_do_nothing), [CHOICE], key=[], prune=lambda tiles, named, **given: tiles
    )
    made._tuner = tuner
    return made


def _do_nothing(x, size_class):  # type: ignore[no-untyped-def]
    pass


def test_the_tuner_is_asked_once_for_each_kind(kernel: TunedKernel, tuner: FakeTuner) -> None:
    x = torch.zeros(2)
    for _ in range(3):
        kernel.launch(None, x, 4, TAPS=9)  # type: ignore[arg-type]
    assert (tuner.asked, kernel.kinds) == (1, 1)
    assert tuner.launched == [((x, 4), {"TAPS": 9, **CHOICE.all_kwargs()})] * 2
    kernel.launch(None, x, 5, TAPS=9)  # type: ignore[arg-type]
    kernel.launch(None, x, 4, TAPS=1)  # type: ignore[arg-type]
    kernel.launch(None, x.half(), 4, TAPS=9)  # type: ignore[arg-type]
    kernel.launch(None, None, 4, TAPS=9)  # type: ignore[arg-type]
    assert (tuner.asked, kernel.kinds) == (5, 5)


def test_a_launch_that_fails_keeps_no_tensors(kernel: TunedKernel, tuner: FakeTuner) -> None:
    tuner.fails = True
    with pytest.raises(torch.OutOfMemoryError):
        kernel.launch(None, torch.zeros(2), 4)  # type: ignore[arg-type]
    assert (tuner.nargs, kernel._compile_all, kernel.kinds) == (None, None, 0)


def test_the_first_measurement_compiles_all_tiles(
    kernel: TunedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        triton.testing, "do_bench", lambda call, **how: seen.append(f"measured {call()}")
    )
    kernel._compile_all = lambda: seen.append("compiled")
    kernel._measure(lambda: None, (0.5,))
    kernel._measure(lambda: None, (0.5,))
    assert seen == ["compiled", "measured None", "measured None"]


def test_float32_has_small_tiles_only() -> None:
    large = SimpleNamespace(kwargs={"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64})
    small = SimpleNamespace(kwargs={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32})
    assert [suits_precision(tile, torch.float32) for tile in (large, small)] == [False, True]
    assert suits_precision(large, torch.float16)
    assert any(suits_precision(tile, torch.float32) for tile in _configurations())


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner

class AbsentGPU:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

triton.runtime.driver.set_active(AbsentGPU())
from sparserefine_ros.triton_kernels import convolution

def run(self, *args, **options):
    self.nargs = dict(zip(self.arg_names, args))
    tiles = self.prune_configs(options)
    convolution._tuned_kernel._compile_all()
    kernels = self.fn.device_caches[0][0].values()
    print(len(tiles), sorted(type(kernel).__name__ for kernel in kernels))
    self.best_config = tiles[0]

Autotuner.run = run
weights = convolution.Weights.of(torch.zeros(9, 16, 16), torch.float16)
x, table = torch.zeros(64, 16, dtype=torch.float16), torch.zeros(64, 9, dtype=torch.int32)
convolution.convolve(x, table, weights, 64, raw=torch.zeros(64, 16))
"""


@pytest.mark.skipif(not COMPILES_SIDE_BY_SIDE, reason="this Triton compiles one after another")
def test_tiles_are_compiled_side_by_side(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2 ['CompiledKernel', 'CompiledKernel']"
