# SPDX-License-Identifier: Apache-2.0
"""What the sparse benchmark reads off a device: times, memory, and its fastest matrix product."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import torch
from torch import nn
from tqdm import tqdm

from sparserefine_ros.dense.devices import device_kind, require_gpu
from sparserefine_ros.evaluation.measure import (
    Spread,
    describe_machine,
    forget_peak_memory,
    peak_memory_mb,
    time_calls,
)
from sparserefine_ros.processor import available_cores, multiplies_bfloat16

_SIDES: Final = (768, 1536, 2304)
_GPU_SIDES: Final = (2048, 4096, 8192)

Product: TypeAlias = Callable[[], object]
Timer: TypeAlias = Callable[[Product], tuple[Spread, int]]


class Meter(Protocol):
    """Measures calls on one device.

    Attributes:
        device: where the tensors are.
        machine: for people.
    """

    device: torch.device
    machine: str

    def precisions(self) -> Mapping[str, torch.dtype]:
        """What the device multiplies itself, by name; float32 is always there."""

    def peak_gflops(self, dtype: torch.dtype) -> float:
        """The fastest matrix product; a median, like everything it is compared with."""

    def time(self, call: Callable[[], object]) -> tuple[Spread, int]:
        """Time and number of calls, each until its result is there."""

    def forget_memory(self) -> float:
        """Let the peak start again; MB in use now."""

    def peak_memory_mb(self) -> float:
        """Most memory in use since."""


class ProcessorMeter:
    """The CPU; memory is that of the process."""

    device = torch.device("cpu")

    def __init__(self, threads: int = 0) -> None:
        self.threads = threads or available_cores()
        torch.set_num_threads(self.threads)
        self.machine = describe_machine()
        # The fastest of each precision, so that measuring it again takes no search.
        self._fastest: dict[torch.dtype, tuple[int, Product]] = {}

    def precisions(self) -> Mapping[str, torch.dtype]:
        """See `Meter`."""
        found = {"float32": torch.float32}
        if multiplies_bfloat16(self.device):
            found["bfloat16"] = torch.bfloat16
        return found

    def peak_gflops(self, dtype: torch.dtype) -> float:
        """Of PyTorch, and in float32 of ONNX Runtime."""
        if dtype not in self._fastest:
            self._fastest[dtype] = _find_fastest(
                dtype, _SIDES, lambda side: self._products(side, dtype), self.time
            )
        return _gflops(*self._fastest[dtype], self.time)

    def time(self, call: Callable[[], object]) -> tuple[Spread, int]:
        """See `Meter`."""
        return time_calls(call)

    def forget_memory(self) -> float:
        """See `Meter`."""
        return forget_peak_memory()

    def peak_memory_mb(self) -> float:
        """See `Meter`."""
        return peak_memory_mb()

    def _products(self, side: int, dtype: torch.dtype) -> Iterator[Product]:
        """Products of two square matrices."""
        a, b, out = (torch.randn(side, side).to(dtype) for _ in range(3))
        yield lambda: torch.mm(a, b, out=out)
        if dtype != torch.float32:
            return
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "product.onnx"
            linear = nn.Linear(side, side, bias=False)
            torch.onnx.export(linear, (a,), str(path), dynamo=False, input_names=["a"])
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        yield lambda: session.run(None, {"a": a.numpy()})


class GpuMeter:
    """A CUDA device; memory is what PyTorch's allocator gave out. float32 is without TF32.

    Raises:
        BackendError: there is no such GPU.
    """

    def __init__(self, device: str) -> None:
        self.device = require_gpu(device, "the benchmark")
        torch.cuda.set_device(self.device)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        name = torch.cuda.get_device_name(self.device)
        self.machine = f"{name}, CUDA {torch.version.cuda}; {describe_machine()}"

    def precisions(self) -> Mapping[str, torch.dtype]:
        """See `Meter`."""
        found = {"float32": torch.float32, "float16": torch.float16}
        if multiplies_bfloat16(self.device):
            found["bfloat16"] = torch.bfloat16
        return found

    def peak_gflops(self, dtype: torch.dtype) -> float:
        """Of PyTorch."""

        def products(side: int) -> Iterator[Product]:
            a, b, out = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(3))
            yield lambda: torch.mm(a, b, out=out)

        return _gflops(*_find_fastest(dtype, _GPU_SIDES, products, self.time), self.time)

    def time(self, call: Callable[[], object]) -> tuple[Spread, int]:
        """With the wait of the host for the device, which the next stage would have, too."""

        def wait_for() -> None:
            call()
            torch.cuda.synchronize(self.device)

        return time_calls(wait_for)

    def forget_memory(self) -> float:
        """See `Meter`."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device) / 2**20

    def peak_memory_mb(self) -> float:
        """See `Meter`."""
        return torch.cuda.max_memory_allocated(self.device) / 2**20


def open_meter(device: str, threads: int = 0) -> Meter:
    """The meter of a device, "cpu", "cuda" or "cuda:N".

    Args:
        device: its name.
        threads: of PyTorch, on the CPU; 0 for one per available core.

    Raises:
        BackendError: no such device.
    """
    return ProcessorMeter(threads) if device_kind(device) == "cpu" else GpuMeter(device)


def _gflops(side: int, product: Product, time: Timer) -> float:
    return 2 * side**3 / time(product)[0].median / 1e6


def _find_fastest(
    dtype: torch.dtype,
    sides: Iterable[int],
    products: Callable[[int], Iterable[Product]],
    time: Timer,
) -> tuple[int, Product]:
    """Side and product of the square matrices that are multiplied fastest."""
    rates: list[tuple[float, int, Product]] = []
    name = str(dtype).removeprefix("torch.")
    for side in tqdm(sides, desc=f"matrix product, {name}", unit="size", leave=False):
        rates += [(_gflops(side, product, time), side, product) for product in products(side)]
    _, side, product = max(rates, key=lambda rate: rate[0])
    return side, product
