# SPDX-License-Identifier: Apache-2.0
"""From parameters to a pipeline: the bundle's values, overrides, and what it refuses."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_bundle, with_sections

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.options import EngineOptions, Progress, Report, silent
from sparserefine_ros.errors import BackendError, BundleError, ConfigurationError
from sparserefine_ros.pipeline import PipelineOptions
from sparserefine_ros.ros.bench import node_parameters
from sparserefine_ros.ros.loading import Model, _pipeline_options, load_model, load_while
from sparserefine_ros.ros.parameters import NodeParameters


def test_a_missing_bundle_is_named() -> None:
    parameters = dataclasses.replace(NodeParameters(), bundle="/nowhere/alley")
    with pytest.raises(BundleError, match="found none at /nowhere/alley"):
        load_model(parameters, silent)


def test_threshold_and_budget_of_bundle_or_parameter(tiny_bundle: Path) -> None:
    parameters = dataclasses.replace(NodeParameters(), bundle=str(tiny_bundle), threads=1)
    model = load_model(parameters, silent)
    assert (model.pipeline.entropy_threshold, model.pipeline.max_refined_pixels) == (1.0, 0)
    model.apply(dataclasses.replace(parameters, entropy_threshold=0.25, max_refined_pixels=9))
    assert (model.pipeline.entropy_threshold, model.pipeline.max_refined_pixels) == (0.25, 9)
    model.apply(parameters)
    assert (model.pipeline.entropy_threshold, model.pipeline.max_refined_pixels) == (1.0, 0)


def test_a_benchmark_gives_its_node_all_options(tiny_bundle: Path, tmp_path: Path) -> None:
    options = PipelineOptions(
        backend="onnxruntime",
        sparse_backend="pytorch",
        threads=3,
        engine=EngineOptions("fp16", tmp_path, False, ((48, 64), (96, 128), (192, 256)), 4),
        entropy_threshold=0.5,
        max_refined_pixels=77,
    )
    given = node_parameters(Bundle.open(tiny_bundle), options)
    parameters = NodeParameters(**given)  # type: ignore[arg-type]
    expected = dataclasses.replace(options, entropy_threshold=None, max_refined_pixels=None)
    assert _pipeline_options(parameters) == expected
    assert (parameters.entropy_threshold, parameters.max_refined_pixels) == (0.5, 77)
    plain = NodeParameters(**node_parameters(Bundle.open(tiny_bundle), PipelineOptions()))  # type: ignore[arg-type]
    assert _pipeline_options(plain) == PipelineOptions()


def test_a_threshold_no_class_count_allows_is_refused(tiny_bundle: Path) -> None:
    parameters = dataclasses.replace(
        NodeParameters(), bundle=str(tiny_bundle), entropy_threshold=1.2
    )
    with pytest.raises(ConfigurationError, match=r"at most log\(3\) = 1.0986 nats"):
        load_model(parameters, silent)


def test_a_bundle_that_asks_an_oracle_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_bundle(tmp_path / "tiny")
    with_sections(folder, selector={"kind": "oracle"})
    parameters = dataclasses.replace(NodeParameters(), bundle=str(folder), threads=1)
    with pytest.raises(ConfigurationError, match="tiny asks an oracle"):
        load_model(parameters, silent)


def test_what_is_loaded_meanwhile_runs_in_another_thread() -> None:
    told: list[str] = []
    ticks: list[int] = []
    enough = threading.Event()
    model = Model(None, None)  # type: ignore[arg-type]

    def load(parameters: NodeParameters, report: Report) -> Model:
        report(Progress("thinking", 0.25))
        told.append(threading.current_thread().name)
        assert enough.wait(10.0)
        return model

    def tick() -> None:
        ticks.append(threading.get_ident())
        if len(ticks) == 3:
            enough.set()

    parameters = dataclasses.replace(NodeParameters(), diagnostics_period_s=0.05)
    report = lambda progress: told.append(str(progress))  # noqa: E731
    assert load_while(load, parameters, report, meanwhile=tick) is model
    assert told[0] == "thinking, 25%"
    assert told[1].startswith("load_model")
    assert set(ticks) == {threading.get_ident()}


def test_an_error_while_loading_reaches_the_caller() -> None:
    def load(parameters: NodeParameters, report: Report) -> Model:
        raise BackendError("no engine")

    with pytest.raises(BackendError, match="no engine"):
        load_while(load, NodeParameters(), silent, meanwhile=lambda: None)


def test_engine_parameters_reach_the_pipeline(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EngineOptions] = []

    def open_pipeline(_bundle: object, options: PipelineOptions, _report: Report) -> object:
        seen.append(options.engine)
        raise BackendError("seen")

    monkeypatch.setattr("sparserefine_ros.ros.loading.Pipeline", open_pipeline)
    parameters = dataclasses.replace(NodeParameters(), bundle=str(tiny_bundle))
    changed = dataclasses.replace(
        parameters,
        dense_precision="fp16",
        engine_cache=str(tmp_path),
        build_engines=False,
        picture_sizes="640x480",
    )
    for given in (parameters, changed):
        with pytest.raises(BackendError, match="seen"):
            load_model(given, silent)
    assert seen == [EngineOptions(), EngineOptions("fp16", tmp_path, False, ((480, 640),))]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(tiny_bundle: Path) -> None:
    parameters = dataclasses.replace(NodeParameters(), bundle=str(tiny_bundle), device="cuda")
    with pytest.raises(BackendError, match=r"expected an NVIDIA GPU \(cuda\) .* found none; "):
        load_model(parameters, silent)
