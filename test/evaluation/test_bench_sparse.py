# SPDX-License-Identifier: Apache-2.0
"""The sparse benchmark compares before it times, counts what it claims, and refuses nonsense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.cli import main
from sparserefine_ros.errors import BackendError, ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation import bench_sparse as module
from sparserefine_ros.evaluation import measure, meters
from sparserefine_ros.evaluation.bench_sparse import bench_sparse
from sparserefine_ros.evaluation.meters import ProcessorMeter
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.sparse.engines import ENGINES, choose_engine
from sparserefine_ros.sparse.pytorch import PyTorchUNet
from sparserefine_ros.sparse.unet import SparseUNet

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIZE", SIZE)
    monkeypatch.setattr(measure, "_RUNS", 3)
    peaks = {torch.float32: 100.0, torch.bfloat16: 200.0}
    monkeypatch.setattr(ProcessorMeter, "peak_gflops", lambda meter, dtype: peaks[dtype])


def test_every_installed_engine_on_every_case(tiny_bundle: Path, tmp_path: Path) -> None:
    command = ["bench", "sparse", "--bundle", str(tiny_bundle), "--threads", "1"]
    command += ["--unet", "bundle", "--unet", "small", "--density", "0.1", "--density", "0.3"]
    assert main([*command, "--json", str(tmp_path / "figures.json")]) == 0
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    rows = figures["times"]
    engines = {row["engine"] for row in rows}
    assert {"pytorch", "dense", "dense-onnxruntime"} <= engines
    assert ("compiled" in engines) == (compiled_kernels() is not None)
    assert len(rows) == 2 * 2 * len(engines)
    trained = {f"training, {name}" for name in (["compiled"] if compiled_kernels() else [])}
    trained.add("training, pytorch")
    assert trained < engines
    assert len(figures["missing"]) + len(engines - trained) == len(ENGINES)
    for row in rows:
        largest = {
            "compiled-bfloat16": 2e-2,
            "dense-bfloat16": 1e-1,
            "dense-openvino-bfloat16": 2e-2,
        }
        assert row["error"] < largest.get(row["engine"], 1e-5)
        assert row["memory_mb"] < 1000.0
    assert all(row["density"] == pytest.approx(0.1, abs=0.02) for row in rows[: len(engines)])
    assert all(row["runs"] == 3 and row["ms"]["low"] > 0.0 for row in rows)
    assert set(figures["plan_ms"]) == {
        "bundle, 10.0%", "bundle, 30.0%", "small, 10.0%", "small, 30.0%"
    }  # fmt: skip


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_only_where_the_processor_multiplies_it(
    native: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "multiplies_bfloat16", lambda device: native)
    figures = bench_sparse(Bundle.open(tiny_bundle), unets=["bundle"], densities=[0.1], threads=1)
    peaks = {row.engine: row.peak_gflops for row in figures.times}
    assert peaks["dense"] == 100.0
    assert peaks.get("dense-bfloat16") == (200.0 if native else None)
    lacks = "not timed: dense-bfloat16, for this cpu does not multiply bfloat16"
    assert (lacks in figures.missing) == (not native)


def test_an_engine_in_bfloat16_on_demand(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "multiplies_bfloat16", lambda device: False)
    figures = bench_sparse(
        Bundle.open(tiny_bundle),
        unets=["bundle"], densities=[0.1], engines=["dense-bfloat16"], threads=1,
    )  # fmt: skip
    (row,) = figures.times
    assert row.peak_share == pytest.approx(row.gflops / 100.0)


def test_auto_is_what_it_stands_for(tiny_bundle: Path) -> None:
    figures = bench_sparse(
        Bundle.open(tiny_bundle), unets=["bundle"], densities=[0.1], engines=["auto"], threads=1
    )
    assert [row.engine for row in figures.times] == [choose_engine("auto")]


def test_the_peak_is_measured_before_each_engine(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def peak(meter: ProcessorMeter, dtype: torch.dtype) -> float:
        told.append("peak")
        return 100.0

    def opened(name: str, unet: SparseUNet, *, threads: int) -> PyTorchUNet:
        told.append(name)
        return PyTorchUNet(unet)

    monkeypatch.setattr(ProcessorMeter, "peak_gflops", peak)
    monkeypatch.setattr(module, "open_engine", opened)
    bench_sparse(
        Bundle.open(tiny_bundle),
        unets=["bundle"], densities=[0.1], engines=["pytorch", "dense"], threads=1,
    )  # fmt: skip
    assert told[-4:] == ["peak", "pytorch", "peak", "dense"]


def test_rates_follow_from_time_and_existing_pairs(tiny_bundle: Path) -> None:
    figures = bench_sparse(
        Bundle.open(tiny_bundle), unets=["bundle"], densities=[1.0], engines=["pytorch"], threads=1
    )
    (row,) = figures.times
    assert row.sites == SIZE[0] * SIZE[1]
    assert row.peak_share == pytest.approx(row.gflops / 100.0)
    # A full mask has all nine neighbours but at the borders: stem, five block convolutions ...
    level = 9 * row.sites * (6 * 8 + 2 * 8 * 8 + 16 * 8 + 8 * 8)
    assert row.gflops * row.ms.median * 1e6 > 2 * 0.95 * level
    assert f"{row.ms.median:.1f}" in figures.to_table()


def test_wrong_results_are_not_timed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(PyTorchUNet):
        def __call__(self, *arguments: object) -> torch.Tensor:
            return 1.01 * super().__call__(*arguments)  # type: ignore[arg-type]

    def open_wrong(name: str, unet: SparseUNet, *, threads: int) -> PyTorchUNet:
        return Wrong(unet)

    monkeypatch.setattr(module, "open_engine", open_wrong)
    with pytest.raises(SparseRefineError, match="timings of wrong results mean nothing"):
        bench_sparse(Bundle.open(tiny_bundle), unets=["bundle"], densities=[0.2], threads=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"unets": ["huge"]}, ConfigurationError, "expected a UNet of bundle, small, ref"),
        ({"densities": [0.0]}, ConfigurationError, "expected a density above 0, at most 1, got 0"),
        ({"densities": [1.5]}, ConfigurationError, "got 1.5"),
        ({"engines": ["minkowski"]}, BackendError, "expected a sparse engine of auto, compiled"),
    ],
)
def test_refuses(
    tiny_bundle: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    fields = {"unets": ["bundle"], "densities": [0.1], "threads": 1} | options
    with pytest.raises(error, match=message):
        bench_sparse(Bundle.open(tiny_bundle), **fields)  # type: ignore[arg-type]


def test_training_counts_both_ways(tiny_bundle: Path) -> None:
    figures = bench_sparse(
        Bundle.open(tiny_bundle),
        unets=["bundle"],
        densities=[0.5],
        engines=["pytorch", "training"],
        threads=1,
    )
    once, *training = figures.times
    flop = once.gflops * once.ms.median
    assert [row.engine for row in training][-1] == "training, pytorch"
    for row in training:
        assert 2.5 * flop < row.gflops * row.ms.median < 3.0 * flop


class OtherDevice(ProcessorMeter):
    """A device that is not the CPU, and computes nothing."""

    device = torch.device("meta")

    def precisions(self) -> dict[str, torch.dtype]:
        return {"float32": torch.float32, "float16": torch.float16}


def test_engines_of_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    found, missing = module._installed(OtherDevice())
    assert {"pytorch", "dense"} <= set(found)
    told = dict(line.removeprefix("not timed: ").split(", ", 1) for line in missing)
    assert told.keys() | set(found) == set(ENGINES)
    for name in ("compiled", "compiled-bfloat16", "dense-onnxruntime", "dense-openvino"):
        assert told[name] == "for it runs on the CPU only"
    assert told["dense-bfloat16"] == "for this meta does not multiply bfloat16"
    monkeypatch.setattr(module, "has_triton", lambda: True)
    assert list(module._training_kernels(OtherDevice())) == ["triton", "pytorch"]
    monkeypatch.setattr(module, "has_triton", lambda: False)
    assert list(module._training_kernels(OtherDevice())) == ["pytorch"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "sparse", "--bundle", str(tiny_bundle), "--device", "cuda"]
    assert main(command) == 1
    assert "expected an NVIDIA GPU (cuda) for the benchmark" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_every_engine_of_a_gpu(tiny_bundle: Path) -> None:
    figures = bench_sparse(
        Bundle.open(tiny_bundle), unets=["bundle", "small"], densities=[0.2], device="cuda"
    )
    engines = {row.engine for row in figures.times}
    assert {"triton", "triton-float16", "pytorch", "dense", "training, triton"} <= engines
    assert torch.cuda.get_device_name() in figures.machine
    assert all(row.ms.median > 0.0 for row in figures.times)
