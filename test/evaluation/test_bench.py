# SPDX-License-Identifier: Apache-2.0
"""The benchmark compares before it times, and its figures add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import smooth_picture

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation import bench
from sparserefine_ros.evaluation.measure import write_figures
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import STAGES


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def test_figures_cover_every_stage_and_are_written(bundle: Bundle, tmp_path: Path) -> None:
    figures = bench.bench_pipeline(bundle, PipelineOptions(), (48, 64), frames=3, warmup=1)
    assert set(STAGES) < set(figures.rows)
    assert figures.labels_equal >= 0.998
    assert 0.0 < figures.rows["total"].low <= figures.rows["total"].median
    assert figures.rows["total"].median <= figures.rows["total"].high
    assert figures.rows["dense"].median < figures.rows["total"].median
    write_figures([figures], tmp_path / "figures.json")
    (written,) = json.loads((tmp_path / "figures.json").read_text())
    assert written["rows"]["total"]["median"] == figures.rows["total"].median
    assert written["machine"] in figures.to_table()


@pytest.mark.parametrize("density", [0.1, 0.4])
def test_density_is_what_was_asked_for(bundle: Bundle, density: float) -> None:
    options = PipelineOptions(max_refined_pixels=10)
    figures = bench.bench_pipeline(bundle, options, (48, 64), frames=8, warmup=0, density=density)
    assert figures.refined_share == pytest.approx(density, abs=0.02)
    rows = figures.rows
    assert rows["= sparse extractor"].high >= rows["refine"].high
    with pytest.raises(ConfigurationError, match="a density between 0 and 1, got 1"):
        bench.bench_pipeline(bundle, options, (48, 64), frames=1, warmup=0, density=1.5)


def test_wrong_labels_are_not_timed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, picture = Pipeline(bundle), smooth_picture(40, 56)
    assert bench.compare_with_reference(pipeline, picture) >= 0.998
    wrong = bench.reference_labels(pipeline, picture)
    wrong[0] = (wrong[0] + 1) % 3
    monkeypatch.setattr(bench, "reference_labels", lambda *_: wrong)
    with pytest.raises(SparseRefineError, match="timings of wrong results mean nothing"):
        bench.compare_with_reference(pipeline, picture)


@pytest.mark.parametrize("right", [0.9999, 0.9985, 0.997])
def test_how_much_is_asked_for(
    bundle: Bundle, right: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of float32 more than of half precision, whatever the names of engine and processor."""
    labels = np.zeros((100, 100), np.uint8)
    wrong = labels.copy()
    wrong.flat[: round((1 - right) * wrong.size)] = 1
    monkeypatch.setattr(bench, "reference_labels", lambda *_: wrong)
    monkeypatch.setattr(bench, "_whole", lambda _: SimpleNamespace(labels=labels))
    exact, half = Pipeline(bundle, PipelineOptions(sparse_backend="pytorch")), Pipeline(bundle)
    half.is_exact = False
    picture = smooth_picture(40, 56)
    for pipeline, least in ((exact, 0.9999), (half, 0.998)):
        if right >= least:
            assert bench.compare_with_reference(pipeline, picture) == right
        else:
            with pytest.raises(SparseRefineError, match="timings of wrong results mean nothing"):
                bench.compare_with_reference(pipeline, picture)


@pytest.mark.parametrize("wrong_rows", [1, 3])
def test_a_dense_model_in_half_precision(
    bundle: Bundle, wrong_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may differ from its own precision a little; what follows starts from what it says."""
    pipeline, picture = Pipeline(bundle), smooth_picture(400, 560)
    pipeline.dense_precision = "bf16"
    (found,) = pipeline.run_dense([picture])
    labels = found.uncertainty.labels.clone()
    labels[:wrong_rows] += 1  # of 200
    other = replace(found, uncertainty=replace(found.uncertainty, labels=labels))
    monkeypatch.setattr(bench, "open_dense_stage", lambda _: lambda _: other)
    if wrong_rows == 1:
        assert bench.compare_with_reference(pipeline, picture) >= 0.998
    else:
        with pytest.raises(SparseRefineError, match=r"99.00% of the dense model's labels"):
            bench.compare_with_reference(pipeline, picture)


def test_what_is_exact(bundle: Bundle) -> None:
    engines = {"pytorch": True, "dense": True, "dense-bfloat16": False}
    if compiled_kernels() is not None:
        engines |= {"compiled": True, "compiled-bfloat16": False}
    for engine, exact in engines.items():
        assert Pipeline(bundle, PipelineOptions(sparse_backend=engine)).is_exact is exact


def test_size_is_width_by_height() -> None:
    assert bench.parse_size("2048x1024") == (1024, 2048)
    for text in ("big", "8x480", "480x99999", "0x0"):
        with pytest.raises(ConfigurationError, match=f"sides of 16 to 16384, got '{text}'"):
            bench.parse_size(text)
