# SPDX-License-Identifier: Apache-2.0
"""Timings of the sparse UNet on realistic masks, engine against engine in one run.

On the CPU or on a GPU; outputs are compared before anything is timed. Training is timed too:
forwards and backwards of the trainable network, on our kernels and on PyTorch.

Shape legend: N sites of the finest level; C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import BackendError, ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation.cost import count_parameters
from sparserefine_ros.evaluation.measure import Spread
from sparserefine_ros.evaluation.meters import Meter, open_meter
from sparserefine_ros.evaluation.sparse_cases import (
    DENSITIES,
    SIZE,
    UNETS,
    Case,
    make_unet,
    plan_maker,
    street_mask,
)
from sparserefine_ros.kernels.library import PYTORCH, TRITON, compiled_kernels, kernels_from
from sparserefine_ros.processor import available_cores
from sparserefine_ros.sparse.compiled import CompiledUNet
from sparserefine_ros.sparse.engines import (
    AUTO,
    ENGINES,
    SparseEngine,
    choose_engine,
    has_triton,
    needs_cpu,
    open_engine,
)
from sparserefine_ros.sparse.unet import SparseUNet

TRAINING: Final = "training"

# Float32 in another order of summation, over up to 60 layers; and products in half precision.
_LARGEST_ERROR: Final = 1e-4
_LARGEST_HALF_ERROR: Final = 2e-2
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
        ms: time of a call, without the plan; and, of an engine with a buffer for its input, without
            writing the features there.
        error: rms difference to the training network's logits over their rms.
        gflops: billions of operations per second; two for each multiplication of an existing pair.
        peak_gflops: the same of the fastest matrix product in the engine's precision, or in float32
            where the device lacks that; measured right before, for machines change their speed.
        peak_share: `gflops` over `peak_gflops`.
        memory_mb: most memory in use during the calls, over that before the engine was opened: of
            the process, or on a GPU of PyTorch's allocator.
    """

    engine: str
    unet: str
    density: float
    sites: int
    runs: int
    ms: Spread
    error: float
    gflops: float
    peak_gflops: float
    peak_share: float
    memory_mb: float


@dataclass(frozen=True)
class SparseFigures:
    """One benchmark run.

    Attributes:
        machine: processor or GPU, cores, versions.
        bundle: whose dense model drew the masks.
        plan_ms: time of the plan, by name of the UNet and density in percent.
        parameters: of each UNet.
        times: each engine on each UNet and mask.
        missing: engines that did not run, and why.
    """

    machine: str
    bundle: str
    plan_ms: dict[str, Spread]
    parameters: dict[str, int]
    times: list[EngineTime]
    missing: list[str]

    def to_table(self) -> str:
        """For people."""
        lines = [
            self.machine,
            f"masks of {self.bundle} on streets of {SIZE[1]} x {SIZE[0]}",
            f"{'UNet, density, engine':<44}{'median ms':>10}{'p10':>9}{'p90':>9}{'runs':>6}"
            f"{'GFLOP/s':>9}{'peak':>7}{'share':>7}{'MB':>8}{'error':>10}",
        ]
        for name, ms in self.plan_ms.items():
            lines.append(f"{name + ', plan':<44}{ms.median:10.1f}{ms.low:9.1f}{ms.high:9.1f}")
        for row in self.times:
            title = f"{row.unet}, {row.density:.1%}, {row.engine}"
            lines.append(
                f"{title:<44}{row.ms.median:10.1f}{row.ms.low:9.1f}{row.ms.high:9.1f}{row.runs:6d}"
                f"{row.gflops:9.1f}{row.peak_gflops:7.0f}{row.peak_share:7.1%}{row.memory_mb:8.0f}"
                f"{row.error:10.1e}"
            )
        return "\n".join([*lines, *self.missing]) + "\n"


def bench_sparse(
    bundle: Bundle,
    *,
    unets: Sequence[str] = UNETS,
    densities: Sequence[float] = DENSITIES,
    engines: Sequence[str] | None = None,
    device: str = "cpu",
    threads: int = 0,
) -> SparseFigures:
    """Time engines on masks of a bundle's dense model.

    Args:
        bundle: draws the masks; its own UNet is one of `UNETS`.
        unets: of `UNETS`.
        densities: shares of the picture.
        engines: of `sparserefine_ros.sparse.engines.ENGINES`, or "training"; None for all that are
            installed, run on the device and compute in what it multiplies itself.
        device: "cpu", "cuda" or "cuda:N".
        threads: on the CPU; 0 for one per available core.

    Raises:
        ConfigurationError: no such UNet, or an impossible density.
        BackendError: no such engine or device, or it is not installed.
        SparseRefineError: an engine's result differs from the training network's.
    """
    _check(bundle, unets, densities, engines or ())
    meter = open_meter(device, threads)
    installed, missing = _installed(meter)
    engines = engines or [*installed, TRAINING]
    masks = {density: street_mask(bundle, density, SIZE, threads) for density in densities}
    plan_ms: dict[str, Spread] = {}
    parameters: dict[str, int] = {}
    times: list[EngineTime] = []
    for name in unets:
        unet = make_unet(name, bundle)
        parameters[name] = count_parameters(unet)
        for density, mask in masks.items():
            label = f"{name}, {density:.1%}"
            plan = plan_maker(mask, unet.depth, meter.device)
            plan_ms[label] = meter.time(plan)[0]
            case = Case(name, unet, density, plan())
            for engine in engines:
                times += _measure(case, engine, meter, threads)
                print(f"{label}, {times[-1].engine}: {times[-1].ms.median:.1f} ms")
    return SparseFigures(meter.machine, bundle.name, plan_ms, parameters, times, missing)


def _precision_of(engine: str) -> str:
    """In which an engine multiplies."""
    for name in ("bfloat16", "float16"):
        if engine.endswith(name):
            return name
    return "float32"


def _installed(meter: Meter) -> tuple[list[str], list[str]]:
    """Engines that are worth their time on a device, and why the others are not."""
    probe, kind = SparseUNet(1, 2, widths=(1,)).to(meter.device), meter.device.type
    found, missing = [], []
    for name in ENGINES:
        if kind != "cpu" and needs_cpu(name):
            missing.append(f"not timed: {name}, for it runs on the CPU only")
        elif reason := _why_not(name, probe):
            missing.append(f"not timed: {name}, {reason}")
        elif (precision := _precision_of(name)) not in meter.precisions():
            missing.append(f"not timed: {name}, for this {kind} does not multiply {precision}")
        else:
            found.append(name)
    return found, missing


def _why_not(engine: str, probe: SparseUNet) -> str:
    """Why an engine does not open; empty where it does."""
    try:
        open_engine(engine, probe, threads=1)
    except BackendError as err:
        return str(err)
    return ""


def _check(
    bundle: Bundle, unets: Sequence[str], densities: Sequence[float], engines: Sequence[str]
) -> None:
    unknown = [name for name in unets if name not in UNETS]
    if unknown:
        raise ConfigurationError(f"expected a UNet of {', '.join(UNETS)}, got {unknown[0]!r}")
    known = (AUTO, *ENGINES, TRAINING)
    unknown = [name for name in engines if name not in known]
    if unknown:
        raise BackendError(f"expected a sparse engine of {', '.join(known)}, got {unknown[0]!r}")
    if bundle.spec.refiner is None:
        raise ConfigurationError(f"expected a bundle with a refiner, {bundle.name} has none")
    for density in densities:
        if not 0.0 < density <= 1.0:
            raise ConfigurationError(f"expected a density above 0, at most 1, got {density}")


def _measure(case: Case, engine: str, meter: Meter, threads: int) -> list[EngineTime]:
    if engine == TRAINING:
        return _measure_training(case, meter)
    engine = choose_engine(engine, str(meter.device))
    peak = _peak_gflops(meter, _precision_of(engine))
    before = meter.forget_memory()
    run = open_engine(engine, case.unet, threads=threads or available_cores())
    error = _checked_error(case, engine, run)
    meter.forget_memory()  # what the first call compiled and tried
    # Where an engine has a buffer for its input, the pipeline writes the features there at once.
    features = run.place(case.features) if isinstance(run, CompiledUNet) else case.features
    ms, runs = meter.time(lambda: run(features, case.plan))
    memory_mb = meter.peak_memory_mb() - before
    return [_row(case, engine, ms, runs, error, case.flop, peak, memory_mb)]


def _peak_gflops(meter: Meter, precision: str) -> float:
    known = meter.precisions()
    return meter.peak_gflops(known.get(precision, known["float32"]))


def _checked_error(case: Case, engine: str, run: SparseEngine) -> float:
    error = case.error_of(run(case.features, case.plan))
    usual = _LARGEST_ERROR if _precision_of(engine) == "float32" else _LARGEST_HALF_ERROR
    largest = _LARGEST_ERROR_OF.get(engine, usual)
    if not error <= largest:
        raise SparseRefineError(
            f"expected {engine} to give {case.name}'s logits within {largest}, got an rms "
            f"difference of {error:.1e}; timings of wrong results mean nothing, so none were taken"
        )
    return error


def _measure_training(case: Case, meter: Meter) -> list[EngineTime]:
    """Forwards and backwards; the tests hold the gradients of both to an oracle."""
    rows = []
    for name, setting in _training_kernels(meter).items():
        peak = _peak_gflops(meter, "float32")
        before = meter.forget_memory()
        with kernels_from(setting):
            case.train_once()
            meter.forget_memory()
            ms, runs = meter.time(case.train_once)
        title = f"{TRAINING}, {name}"
        memory_mb = meter.peak_memory_mb() - before
        rows.append(_row(case, title, ms, runs, 0.0, case.training_flop, peak, memory_mb))
    return rows


def _training_kernels(meter: Meter) -> dict[str, str | None]:
    """What may compute the gradients, with the setting that chooses it; None for the default."""
    found: dict[str, str | None] = {}
    if meter.device.type == "cpu" and compiled_kernels() is not None:
        found["compiled"] = None
    if meter.device.type != "cpu" and has_triton():
        found[TRITON] = TRITON
    return {**found, PYTORCH: PYTORCH}


def _row(
    case: Case,
    engine: str,
    ms: Spread,
    runs: int,
    error: float,
    flop: int,
    peak: float,
    memory_mb: float,
) -> EngineTime:
    gflops = flop / ms.median / 1e6
    return EngineTime(
        engine, case.name, case.sites / (SIZE[0] * SIZE[1]), case.sites, runs, ms, error, gflops,
        peak, gflops / peak, memory_mb,
    )  # fmt: skip
