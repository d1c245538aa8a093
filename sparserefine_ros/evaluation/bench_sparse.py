# SPDX-License-Identifier: Apache-2.0
"""Timings of the sparse UNet on realistic masks, engine against engine in one run.

Outputs are compared before anything is timed. Training is timed too: forwards and backwards of the
trainable network, on the compiled kernels and on PyTorch.

Shape legend: N sites of the finest level; C classes.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import BackendError, ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation.cost import count_parameters
from sparserefine_ros.evaluation.measure import (
    Spread,
    describe_machine,
    forget_peak_memory,
    measure_peak_gflops,
    peak_memory_mb,
    time_calls,
)
from sparserefine_ros.evaluation.sparse_cases import (
    DENSITIES,
    SIZE,
    UNETS,
    Case,
    make_unet,
    street_mask,
)
from sparserefine_ros.kernels.library import PYTORCH, VARIABLE, compiled_kernels
from sparserefine_ros.processor import available_cores, multiplies_bfloat16
from sparserefine_ros.sparse.engines import ENGINES, SparseEngine, open_engine, runs_on_gpu
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.sparse.unet import SparseUNet

TRAINING: Final = "training"

# Float32 in another order of summation, over up to 60 layers; and products of bfloat16.
_LARGEST_ERROR: Final = 1e-4
_LARGEST_BFLOAT16_ERROR: Final = 2e-2
# PyTorch keeps what lies between the products in bfloat16, too.
_LARGEST_ERROR_OF: Final = {"dense-bfloat16": 1e-1}


@dataclass(frozen=True)
class EngineTime:
    """One engine on one UNet and mask.

    Attributes:
        engine: its name.
        unet: name of the UNet.
        density: share of the picture that is active, 0 .. 1.
        sites: N.
        runs: timed calls.
        ms: time of a call, without the plan.
        error: rms difference to the training network's logits over their rms.
        gflops: billions of operations per second; two for each multiplication of an existing pair.
        peak_share: the same over what the fastest matrix product of this machine reaches in the
            engine's precision, or in float32 where it lacks that.
        memory_mb: largest resident size of the process during the calls, over the size before the
            engine was opened.
    """

    engine: str
    unet: str
    density: float
    sites: int
    runs: int
    ms: Spread
    error: float
    gflops: float
    peak_share: float
    memory_mb: float


@dataclass(frozen=True)
class SparseFigures:
    """One benchmark run.

    Attributes:
        machine: processor, cores, versions.
        bundle: whose dense model drew the masks.
        peak_gflops: of the fastest matrix product measured, by precision.
        plan_ms: time of the plan, by name of the UNet and density in percent.
        parameters: of each UNet.
        times: each engine on each UNet and mask.
        missing: engines that did not run, and why.
    """

    machine: str
    bundle: str
    peak_gflops: dict[str, float]
    plan_ms: dict[str, Spread]
    parameters: dict[str, int]
    times: list[EngineTime]
    missing: list[str]

    def to_table(self) -> str:
        """For people."""
        peaks = ", ".join(f"{name} {rate:.0f}" for name, rate in self.peak_gflops.items())
        lines = [
            f"{self.machine}; matrix product, GFLOP/s: {peaks}",
            f"masks of {self.bundle} on streets of {SIZE[1]} x {SIZE[0]}",
            f"{'UNet, density, engine':<44}{'median ms':>10}{'p10':>9}{'p90':>9}{'runs':>6}"
            f"{'GFLOP/s':>9}{'of peak':>9}{'MB':>8}{'error':>10}",
        ]
        for name, ms in self.plan_ms.items():
            lines.append(f"{name + ', plan':<44}{ms.median:10.1f}{ms.low:9.1f}{ms.high:9.1f}")
        for row in self.times:
            title = f"{row.unet}, {row.density:.1%}, {row.engine}"
            lines.append(
                f"{title:<44}{row.ms.median:10.1f}{row.ms.low:9.1f}{row.ms.high:9.1f}{row.runs:6d}"
                f"{row.gflops:9.1f}{row.peak_share:9.1%}{row.memory_mb:8.0f}"
                f"{row.error:10.1e}"
            )
        return "\n".join([*lines, *self.missing]) + "\n"


def bench_sparse(
    bundle: Bundle,
    *,
    unets: Sequence[str] = UNETS,
    densities: Sequence[float] = DENSITIES,
    engines: Sequence[str] | None = None,
    threads: int = 0,
) -> SparseFigures:
    """Time engines on masks of a bundle's dense model.

    Args:
        bundle: draws the masks; its own UNet is one of `UNETS`.
        unets: of `UNETS`.
        densities: shares of the picture.
        engines: of `sparserefine_ros.sparse.engines.ENGINES`, or "training"; None for all that are
            installed and whose precision the processor has.
        threads: 0 for one per available core.

    Raises:
        ConfigurationError: no such UNet, or an impossible density.
        BackendError: no such engine, or it is not installed.
        SparseRefineError: an engine's result differs from the training network's.
    """
    _check(unets, densities)
    installed, missing = _installed()
    engines = engines or [*installed, TRAINING]
    threads = threads or available_cores()
    torch.set_num_threads(threads)
    peaks = {name: measure_peak_gflops(dtype, threads) for name, dtype in _precisions().items()}
    masks = {density: street_mask(bundle, density, SIZE, threads) for density in densities}
    plan_ms: dict[str, Spread] = {}
    parameters: dict[str, int] = {}
    times: list[EngineTime] = []
    for name in unets:
        unet = make_unet(name, bundle)
        parameters[name] = count_parameters(unet)
        for density, sites in masks.items():
            label = f"{name}, {density:.1%}"
            plan = functools.partial(build_plan, sites, (1, *SIZE), unet.depth)
            plan_ms[label] = time_calls(plan)[0]
            case = Case(name, unet, density, plan())
            for engine in engines:
                times += _measure(case, engine, threads, peaks)
                print(f"{label}, {times[-1].engine}: {times[-1].ms.median:.1f} ms")
    return SparseFigures(
        describe_machine(), bundle.name, peaks, plan_ms, parameters, times, missing
    )


def _precisions() -> dict[str, torch.dtype]:
    """What the processor multiplies itself."""
    found = {"float32": torch.float32}
    if multiplies_bfloat16(torch.device("cpu")):
        found["bfloat16"] = torch.bfloat16
    return found


def _precision_of(engine: str) -> str:
    return "bfloat16" if engine.endswith("bfloat16") else "float32"


def _installed() -> tuple[list[str], list[str]]:
    """Engines that are worth their time here, and why the others are not."""
    probe = SparseUNet(1, 2, widths=(1,))
    found, missing = [], []
    for name in ENGINES:
        if not runs_on_gpu(name) and _precision_of(name) not in _precisions():
            missing.append(f"not timed, for this processor lacks bfloat16: {name}")
            continue
        with contextlib.suppress(BackendError):
            open_engine(name, probe, threads=1)
            found.append(name)
            continue
        missing.append(f"not timed, for it is not installed: {name}")
    return found, missing


def _check(unets: Sequence[str], densities: Sequence[float]) -> None:
    unknown = [name for name in unets if name not in UNETS]
    if unknown:
        raise ConfigurationError(f"expected a UNet of {', '.join(UNETS)}, got {unknown[0]!r}")
    for density in densities:
        if not 0.0 < density <= 1.0:
            raise ConfigurationError(f"expected a density above 0, at most 1, got {density}")


def _measure(case: Case, engine: str, threads: int, peaks: dict[str, float]) -> list[EngineTime]:
    if engine == TRAINING:
        return _measure_training(case, peaks)
    before = forget_peak_memory()
    run = open_engine(engine, case.unet, threads=threads)
    error = _checked_error(case, engine, run)
    ms, runs = time_calls(lambda: run(case.features, case.plan))
    peak = peaks.get(_precision_of(engine), peaks["float32"])
    return [_row(case, engine, ms, runs, error, case.flop, peak, before)]


def _checked_error(case: Case, engine: str, run: SparseEngine) -> float:
    error = case.error_of(run(case.features, case.plan))
    half = _precision_of(engine) == "bfloat16"
    usual = _LARGEST_BFLOAT16_ERROR if half else _LARGEST_ERROR
    largest = _LARGEST_ERROR_OF.get(engine, usual)
    if not error <= largest:
        raise SparseRefineError(
            f"expected {engine} to give {case.name}'s logits within {largest}, got an rms "
            f"difference of {error:.1e}; timings of wrong results mean nothing, so none were taken"
        )
    return error


def _measure_training(case: Case, peaks: dict[str, float]) -> list[EngineTime]:
    """Forwards and backwards; the tests hold the gradients of both to an oracle."""
    rows = []
    ways: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        "compiled": contextlib.nullcontext,
        "pytorch": _without_kernels,
    }
    for name, way in ways.items():
        if name == "compiled" and compiled_kernels() is None:
            continue
        before = forget_peak_memory()
        with way():
            ms, runs = time_calls(case.train_once)
        title, peak = f"{TRAINING}, {name}", peaks["float32"]
        rows.append(_row(case, title, ms, runs, 0.0, case.training_flop, peak, before))
    return rows


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """Everything runs on PyTorch."""
    previous = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = PYTORCH
    compiled_kernels.cache_clear()
    try:
        yield
    finally:
        if previous is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = previous
        compiled_kernels.cache_clear()


def _row(
    case: Case,
    engine: str,
    ms: Spread,
    runs: int,
    error: float,
    flop: int,
    peak: float,
    resident_before: float,
) -> EngineTime:
    gflops = flop / ms.median / 1e6
    return EngineTime(
        engine, case.name, case.sites / (SIZE[0] * SIZE[1]), case.sites, runs, ms, error, gflops,
        gflops / peak, peak_memory_mb() - resident_before,
    )  # fmt: skip
