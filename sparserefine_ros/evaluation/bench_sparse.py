# SPDX-License-Identifier: Apache-2.0
"""Timings of the sparse UNet on realistic masks, engine against engine in one run.

The masks are where a bundle's dense model is least sure of a procedural street of 2048 x 1024, at
several densities. Outputs are compared before anything is timed.

Shape legend: N sites of the finest level; C classes.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.segmenter import available_cores, open_segmenter
from sparserefine_ros.errors import BackendError, ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation.bench import (
    Spread,
    describe_machine,
    peak_memory_mb,
    street_pictures,
)
from sparserefine_ros.evaluation.cost import count_parameters, count_unet_macs
from sparserefine_ros.image import resize_image
from sparserefine_ros.refiner import load_refiner
from sparserefine_ros.selection import select_above
from sparserefine_ros.sparse.engines import ENGINES, SparseEngine, open_engine
from sparserefine_ros.sparse.plan import SparsePlan, build_plan
from sparserefine_ros.sparse.unet import SparseUNet
from sparserefine_ros.uncertainty import measure_uncertainty

SIZE: Final = (1024, 2048)
DENSITIES: Final = (0.034, 0.069, 0.118, 0.19)

# Widths and blocks by name; the paper's is the reference.
_SIZES: Final[Mapping[str, tuple[tuple[int, ...], int]]] = {
    "small": ((16, 32, 64, 96, 128), 2),
    "reference": ((32, 64, 128, 256, 512, 1024), 2),
}
BUNDLE_UNET: Final = "bundle"
UNETS: Final = (BUNDLE_UNET, *_SIZES)

# Float32 in another order of summation, over up to 60 layers.
_LARGEST_ERROR: Final = 1e-4
_RUNS: Final = 20
_FEWEST_RUNS: Final = 3
_SECONDS: Final = 20.0


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
        peak_share: the same over what the fastest matrix product of this machine reaches.
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


@dataclass(frozen=True)
class SparseFigures:
    """One benchmark run.

    Attributes:
        machine: processor, cores, versions.
        bundle: whose dense model drew the masks.
        peak_gflops: of the fastest matrix product measured, float32.
        plan_ms: time of the plan, by name of the UNet and density in percent.
        parameters: of each UNet.
        times: each engine on each UNet and mask.
        missing: engines that could not run, and why.
        peak_memory_mb: largest resident size of this process so far.
    """

    machine: str
    bundle: str
    peak_gflops: float
    plan_ms: dict[str, Spread]
    parameters: dict[str, int]
    times: list[EngineTime]
    missing: list[str]
    peak_memory_mb: float

    def to_table(self) -> str:
        """For people."""
        lines = [
            f"{self.machine}, peak memory {self.peak_memory_mb:.0f} MB, "
            f"matrix product {self.peak_gflops:.0f} GFLOP/s",
            f"masks of {self.bundle} on streets of {SIZE[1]} x {SIZE[0]}",
            f"{'UNet, density, engine':<44}{'median ms':>10}{'p10':>9}{'p90':>9}{'runs':>6}"
            f"{'GFLOP/s':>9}{'of peak':>9}{'error':>10}",
        ]
        for name, ms in self.plan_ms.items():
            lines.append(f"{name + ', plan':<44}{ms.median:10.1f}{ms.low:9.1f}{ms.high:9.1f}")
        for row in self.times:
            title = f"{row.unet}, {row.density:.1%}, {row.engine}"
            lines.append(
                f"{title:<44}{row.ms.median:10.1f}{row.ms.low:9.1f}{row.ms.high:9.1f}{row.runs:6d}"
                f"{row.gflops:9.1f}{row.peak_share:9.1%}{row.error:10.1e}"
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
        engines: of `sparserefine_ros.sparse.engines.ENGINES`; None for those installed.
        threads: 0 for one per available core.

    Raises:
        ConfigurationError: no such UNet, or an impossible density.
        BackendError: no such engine, or it is not installed.
        SparseRefineError: an engine's result differs from the training network's.
    """
    _check(unets, densities)
    installed, missing = _installed()
    engines = engines or installed
    threads = threads or available_cores()
    torch.set_num_threads(threads)
    peak = measure_peak_gflops(threads)
    masks = {density: street_mask(bundle, density, threads) for density in densities}
    plan_ms: dict[str, Spread] = {}
    parameters: dict[str, int] = {}
    times: list[EngineTime] = []
    for name in unets:
        unet = _make_unet(name, bundle)
        parameters[name] = count_parameters(unet)
        for density, sites in masks.items():
            label = f"{name}, {density:.1%}"
            plan_ms[label] = _time(functools.partial(build_plan, sites, (1, *SIZE), unet.depth))[0]
            case = _Case(name, unet, density, build_plan(sites, (1, *SIZE), unet.depth))
            for engine in engines:
                run = open_engine(engine, unet, threads=threads)
                times.append(_measure(case, engine, run, peak))
                print(f"{label}, {engine}: {times[-1].ms.median:.1f} ms")
    return SparseFigures(
        describe_machine(), bundle.name, peak, plan_ms, parameters, times, missing,
        peak_memory_mb(),
    )  # fmt: skip


class _Case:
    """A UNet on a mask, and what it shall say."""

    def __init__(self, name: str, unet: SparseUNet, density: float, plan: SparsePlan) -> None:
        self.name, self.density, self.plan = name, density, plan
        self.sites = plan.levels[0].count
        generator = torch.Generator().manual_seed(0)
        channels = unet.stem.kernel.shape[1]
        self.features = torch.randn(self.sites, channels, generator=generator)
        self.flop = 2 * count_unet_macs(unet, plan)
        with torch.inference_mode():
            self.expected = unet(self.features, plan)

    def error_of(self, logits: Tensor) -> float:
        """Rms difference over the rms of what was expected."""
        difference = (logits - self.expected).square().mean().sqrt()
        return float(difference / self.expected.square().mean().sqrt())


def _installed() -> tuple[list[str], list[str]]:
    """Engines that can be opened here, and why the others cannot."""
    probe = SparseUNet(1, 2, widths=(1,))
    found, missing = [], []
    for name in ENGINES:
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


def _measure(case: _Case, engine: str, run: SparseEngine, peak: float) -> EngineTime:
    error = case.error_of(run(case.features, case.plan))
    if not error <= _LARGEST_ERROR:
        raise SparseRefineError(
            f"expected {engine} to give {case.name}'s logits within {_LARGEST_ERROR}, got an rms "
            f"difference of {error:.1e}; timings of wrong results mean nothing, so none were taken"
        )
    ms, runs = _time(lambda: run(case.features, case.plan))
    gflops = case.flop / ms.median / 1e6
    return EngineTime(
        engine, case.name, case.sites / (SIZE[0] * SIZE[1]), case.sites, runs, ms, error, gflops,
        gflops / peak,
    )  # fmt: skip


def _time(call: Callable[[], object]) -> tuple[Spread, int]:
    """Spread and number of calls: 20, or as many as fit in 20 seconds, but no fewer than 3."""
    call()
    taken: list[float] = []
    while len(taken) < _RUNS and (len(taken) < _FEWEST_RUNS or sum(taken) < 1e3 * _SECONDS):
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return Spread.of(taken), len(taken)


def _make_unet(name: str, bundle: Bundle) -> SparseUNet:
    """The bundle's UNet with its weights, or one of the named sizes with random ones."""
    if name == BUNDLE_UNET:
        extractor = load_refiner(bundle).extractor
        if not isinstance(extractor, SparseUNet):
            raise BackendError(
                f"expected a bundle with a sparse UNet, {bundle.name} has another extractor; "
                f"time one of {', '.join(_SIZES)}"
            )
        return extractor.eval()
    widths, blocks = _SIZES[name]
    torch.manual_seed(0)
    unet = SparseUNet(3, len(bundle.class_names), widths=widths, blocks=blocks)
    for part in unet.modules():
        if isinstance(part, nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)
    return unet.eval()


def street_mask(bundle: Bundle, density: float, threads: int) -> Tensor:
    """Sites int64 [N] of the blocks of highest entropy."""
    (picture,) = street_pictures(SIZE, count=1)
    segmenter = open_segmenter(bundle, backend="auto", device="cpu", threads=threads)
    low_res_size = bundle.spec.dense.input.low_res_size(SIZE)
    entropy = measure_uncertainty(segmenter(resize_image(picture, low_res_size)).logits).entropy
    threshold = -1.0 if density >= 1.0 else float(np.quantile(entropy.numpy(), 1.0 - density))
    return select_above(entropy, SIZE, threshold=threshold).pixels


def measure_peak_gflops(threads: int) -> float:
    """The fastest float32 matrix product of PyTorch and ONNX Runtime on this machine."""
    best = 0.0
    for side in tqdm((768, 1536, 2304), desc="matrix product", unit="size"):
        for call in _products(side, threads):
            best = max(best, 2 * side**3 / _time(call)[0].low / 1e6)
    return best


def _products(side: int, threads: int) -> Iterator[Callable[[], object]]:
    """Products of two square matrices."""
    import onnxruntime

    a, b, out = (torch.randn(side, side) for _ in range(3))
    yield lambda: torch.mm(a, b, out=out)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "product.onnx"
        linear = nn.Linear(side, side, bias=False)
        torch.onnx.export(linear, (a,), str(path), dynamo=False, input_names=["a"])
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    yield lambda: session.run(None, {"a": a.numpy()})
