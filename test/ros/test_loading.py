# SPDX-License-Identifier: Apache-2.0
"""From parameters to a pipeline: the bundle's values, overrides, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from conftest import make_tiny_bundle, with_sections

from sparserefine_ros.errors import BundleError, ConfigurationError
from sparserefine_ros.ros.loading import load_model
from sparserefine_ros.ros.parameters import NodeParameters


def test_a_missing_bundle_is_named() -> None:
    parameters = dataclasses.replace(NodeParameters(), bundle="/nowhere/alley")
    with pytest.raises(BundleError, match="found none at /nowhere/alley"):
        load_model(parameters)


def test_threshold_and_budget_of_bundle_or_parameter(tiny_bundle: Path) -> None:
    parameters = dataclasses.replace(NodeParameters(), bundle=str(tiny_bundle), threads=1)
    model = load_model(parameters)
    assert (model.pipeline.entropy_threshold, model.pipeline.max_refined_pixels) == (1.0, 0)
    model.apply(dataclasses.replace(parameters, entropy_threshold=0.25, max_refined_pixels=9))
    assert (model.pipeline.entropy_threshold, model.pipeline.max_refined_pixels) == (0.25, 9)
    model.apply(parameters)
    assert (model.pipeline.entropy_threshold, model.pipeline.max_refined_pixels) == (1.0, 0)


def test_a_threshold_no_class_count_allows_is_refused(tiny_bundle: Path) -> None:
    parameters = dataclasses.replace(
        NodeParameters(), bundle=str(tiny_bundle), entropy_threshold=1.2
    )
    with pytest.raises(ConfigurationError, match=r"at most log\(3\) = 1.0986 nats"):
        load_model(parameters)


def test_a_bundle_that_asks_an_oracle_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_bundle(tmp_path / "tiny")
    with_sections(folder, selector={"kind": "oracle"})
    parameters = dataclasses.replace(NodeParameters(), bundle=str(folder), threads=1)
    with pytest.raises(ConfigurationError, match="tiny asks an oracle"):
        load_model(parameters)
