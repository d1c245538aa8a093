# SPDX-License-Identifier: Apache-2.0
"""What is read off a device; the GPU's part needs one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparserefine_ros.errors import BackendError
from sparserefine_ros.evaluation import measure, meters
from sparserefine_ros.evaluation.meters import ProcessorMeter, open_meter

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_RUNS", 3)
    monkeypatch.setattr(meters, "_SIDES", (64, 128))
    monkeypatch.setattr(meters, "_GPU_SIDES", (256, 512))


@pytest.mark.parametrize(("dtype", "ways"), [(torch.float32, 2), (torch.bfloat16, 1)], ids=str)
def test_products_of_the_processor(dtype: torch.dtype, ways: int) -> None:
    products = list(ProcessorMeter(1)._products(128, dtype))
    assert len(products) == ways
    for call in products:
        seconds = measure.time_calls(call)[0].low / 1e3
        assert 0.01 < 2 * 128**3 / seconds / 1e9 < 10_000


def test_the_processor() -> None:
    meter = open_meter("cpu", 1)
    assert meter.device == torch.device("cpu")
    assert "float32" in meter.precisions()
    assert 0.01 < meter.peak_gflops(torch.float32) < 10_000
    before = meter.forget_memory()
    block: list[np.ndarray] = []
    spread, runs = meter.time(lambda: block.append(np.ones(20_000_000, np.uint8)))
    assert runs == 3
    assert 0.0 < spread.low <= spread.median
    assert meter.peak_memory_mb() - before > 60.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    message = r"expected an NVIDIA GPU \(cuda:1\) for the benchmark, found none"
    with pytest.raises(BackendError, match=message):
        open_meter("cuda:1")


@needs_gpu
def test_a_gpu() -> None:
    meter = open_meter("cuda")
    assert torch.cuda.get_device_name() in meter.machine
    assert {"float32", "float16"} <= set(meter.precisions())
    for dtype in meter.precisions().values():
        assert 0.01 < meter.peak_gflops(dtype) < 10_000_000
    before = meter.forget_memory()
    block = torch.ones(80 << 20, dtype=torch.uint8, device=meter.device)
    assert meter.peak_memory_mb() - before == pytest.approx(80.0, abs=1.0)
    assert block.numel() == 80 << 20
