# SPDX-License-Identifier: Apache-2.0
"""From node parameters to an opened bundle and its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.resources import find_bundle
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


ModelLoader = Callable[[NodeParameters], Model]


def load_model(parameters: NodeParameters) -> Model:
    """Open the bundle and build the pipeline that `parameters` ask for.

    Raises:
        BundleError: no such bundle, or it is damaged.
        BackendError: the inference engine or device is not available.
        ConfigurationError: a parameter does not fit the bundle.
    """
    bundle = Bundle.open(find_bundle(parameters.bundle))
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
    options = PipelineOptions(
        backend=parameters.backend,
        sparse_backend=parameters.sparse_backend,
        device=parameters.device,
        threads=parameters.threads,
    )
    pipeline = Pipeline(bundle, options)
    model = Model(bundle, pipeline)
    model.apply(parameters)
    return model
