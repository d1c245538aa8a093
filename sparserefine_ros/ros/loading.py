# SPDX-License-Identifier: Apache-2.0
"""From node parameters to an opened bundle and its pipeline."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.options import EngineOptions, Report, parse_picture_sizes
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.ros.bridge import cv_bridge_available
from sparserefine_ros.ros.parameters import NodeParameters, find_mistakes


@dataclass(frozen=True)
class Model:
    """An opened bundle with its pipeline.

    Attributes:
        bundle: the bundle.
        pipeline: runs it; one thread at a time, but its settings may change from another one.
    """

    bundle: Bundle
    pipeline: Pipeline

    def apply(self, parameters: NodeParameters) -> None:
        """Set threshold and budget of the pipeline; -1 stands for the bundle's value.

        Raises:
            ConfigurationError: a value makes no sense for this bundle.
        """
        threshold, budget = parameters.entropy_threshold, parameters.max_refined_pixels
        self.pipeline.entropy_threshold = None if threshold < 0.0 else threshold
        self.pipeline.max_refined_pixels = None if budget < 0 else budget


ModelLoader = Callable[[NodeParameters, Report], Model]


def load_while(
    load: ModelLoader,
    parameters: NodeParameters,
    report: Report,
    *,
    meanwhile: Callable[[], None],
) -> Model:
    """Load in a thread of its own, for an engine may be built for minutes.

    Args:
        load: does it.
        parameters: what it gets.
        report: gets its progress, in that thread.
        meanwhile: called in the caller's thread every `diagnostics_period_s` until it is done.

    Raises:
        what `load` raises.
    """
    with concurrent.futures.ThreadPoolExecutor(1, "load_model") as pool:
        loading = pool.submit(load, parameters, report)
        while not concurrent.futures.wait([loading], parameters.diagnostics_period_s).done:
            meanwhile()
        return loading.result()


def load_model(parameters: NodeParameters, report: Report) -> Model:
    """Open the bundle and build the pipeline that `parameters` ask for.

    Args:
        parameters: the node's.
        report: gets the progress of what takes long.

    Raises:
        BundleError: no such bundle, or it is damaged.
        BackendError: the inference engine or device is not available.
        ConfigurationError: a parameter does not fit the bundle.
    """
    bundle = Bundle.named(parameters.bundle)
    if bundle.spec.uses_truth():
        raise ConfigurationError(
            f"expected a bundle for pictures without labels, {bundle.name} asks an oracle; it "
            "serves evaluation only, choose another bundle"
        )
    chosen = bundle.spec.selector
    mistakes = find_mistakes(
        parameters, classes=len(bundle.class_names), selector=chosen.kind if chosen else None
    )
    if mistakes:
        raise ConfigurationError("; ".join(mistakes))
    pipeline = Pipeline(bundle, _pipeline_options(parameters), report)
    model = Model(bundle, pipeline)
    model.apply(parameters)
    if parameters.transport == "raw":
        cv_bridge_available()  # found out now and not with the first frame: it may take seconds
    return model


def _pipeline_options(parameters: NodeParameters) -> PipelineOptions:
    engine = EngineOptions(
        precision=parameters.dense_precision,
        cache=Path(parameters.engine_cache) if parameters.engine_cache else None,
        build=parameters.build_engines,
        picture_sizes=parse_picture_sizes(parameters.picture_sizes),
        max_batch=parameters.max_batch,
    )
    return PipelineOptions(
        backend=parameters.backend,
        sparse_backend=parameters.sparse_backend,
        device=parameters.device,
        threads=parameters.threads,
        engine=engine,
    )
