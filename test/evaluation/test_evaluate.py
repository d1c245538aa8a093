# SPDX-License-Identifier: Apache-2.0
"""Scores of a bundle against a count done pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_picture

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.datasets import Sample, Street
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.evaluate import at_full_resolution, evaluate, write_report
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import Map


class TinyData:
    """Two pictures; labels are random, so that every class is sometimes right and often wrong."""

    class_names: tuple[str, ...] = ("road", "car", "sky")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        if index >= len(self):
            raise IndexError(index)
        labels = np.random.default_rng(index).choice(
            np.array([0, 1, 2, 255], np.uint8), size=(30, 44)
        )
        return Sample(f"tiny_{index}", smooth_picture(30, 44, seed=index), labels)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def count_by_hand(bundle: Bundle) -> tuple[dict[str, float], float, float]:
    """Pixel accuracy of dense and refined result, selector recall and density."""
    pipeline = Pipeline(bundle)
    hits = {"dense-low": 0, "refined": 0}
    labelled = wrong = found = selected = pixels = 0
    data = TinyData()
    for index in range(len(data)):
        sample = data[index]
        result = pipeline(sample.image, frozenset({Map.LABELS, Map.DENSE_LABELS, Map.REFINED}))
        for row, column in np.ndindex(sample.labels.shape):
            truth = sample.labels[row, column]
            pixels += 1
            selected += bool(result.refined[row, column])
            if truth == 255:
                continue
            labelled += 1
            dense_right = result.dense_labels[row, column] == truth
            hits["dense-low"] += bool(dense_right)
            hits["refined"] += bool(result.labels[row, column] == truth)
            wrong += not dense_right
            found += bool(not dense_right and result.refined[row, column])
    accuracies = {name: count / labelled for name, count in hits.items()}
    return accuracies, found / wrong, selected / pixels


def test_scores_equal_a_count_by_hand(bundle: Bundle) -> None:
    evaluation = evaluate(bundle, TinyData(), PipelineOptions(), dense_full=True)
    accuracies, recall, density = count_by_hand(bundle)
    assert set(evaluation.variants) == {"dense-low", "dense-full", "refined"}
    for name, accuracy in accuracies.items():
        assert evaluation.variants[name].pixel_accuracy() == pytest.approx(accuracy)
    assert evaluation.selection.recall == pytest.approx(recall)
    assert evaluation.selection.density == pytest.approx(density)
    assert accuracies["dense-low"] != accuracies["refined"]


def test_report_and_table_hold_the_scores(bundle: Bundle, tmp_path: Path) -> None:
    evaluation = evaluate(bundle, TinyData(), PipelineOptions())
    write_report(evaluation, tmp_path / "deep" / "scores.json")
    report = json.loads((tmp_path / "deep" / "scores.json").read_text())
    miou = evaluation.variants["refined"].mean_iou()
    assert report["variants"]["refined"]["miou"] == pytest.approx(miou)
    assert set(report["variants"]["refined"]["iou"]) == set(TinyData.class_names)
    assert f"{100 * miou:.2f}" in evaluation.to_table()


def test_other_classes_are_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigurationError, match=r"expected data with the bundle's classes.*road"):
        evaluate(bundle, Street("val", count=1, size=(32, 48)), PipelineOptions())


def test_full_resolution_needs_a_free_input_size(bundle: Bundle) -> None:
    assert Pipeline(at_full_resolution(bundle))(smooth_picture(24, 32)).low_res_size == (24, 32)
    taken = bundle.spec.dense.input.model_copy(update={"size": (8, 8), "scale": None})
    dense = bundle.spec.dense.model_copy(update={"input": taken})
    fixed = Bundle(bundle.folder, bundle.spec.model_copy(update={"dense": dense}), bundle.digest)
    with pytest.raises(ConfigurationError, match="free input size"):
        at_full_resolution(fixed)
