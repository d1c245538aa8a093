# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data.files import write_picture, write_png
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.datasets import (
    Street,
    checked_sample,
    iterate,
    open_dataset,
)
from sparserefine_ros.errors import DatasetError

REPOSITORY = Path(__file__).parents[2]
BUNDLE = REPOSITORY / "models" / "street_small"
DOCUMENTATION = REPOSITORY / "docs" / "datasets.md"


class TestCheckedSample:
    def test_accepts_every_class_and_ignored(self) -> None:
        labels = np.array([[0, 10, 255]], np.uint8)
        image = np.zeros((1, 3, 3), np.uint8)
        assert np.array_equal(checked_sample("a", image, labels, classes=11).labels, labels)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.zeros((3, 2), np.uint8), r"uint8 \[2, 3\] like the picture, got uint8 \[3, 2\]"),
            (np.zeros((2, 3), np.uint16), r"got uint16"),
            (np.full((2, 3), 11, np.uint8), "class ids 0 .. 10 or 255, got 11"),
            (np.full((2, 3), 254, np.uint8), "got 254"),
        ],
    )
    def test_refuses(self, labels: NDArray[np.uint8], message: str) -> None:
        with pytest.raises(DatasetError, match=message):
            checked_sample("a", np.zeros((2, 3, 3), np.uint8), labels, classes=11)

    def test_counts_the_classes_of_the_data_set(self) -> None:
        labels, image = np.full((1, 1), 2, np.uint8), np.zeros((1, 1, 3), np.uint8)
        assert checked_sample("a", image, labels, classes=3).labels.item() == 2
        with pytest.raises(DatasetError, match=r"class ids 0 \.\. 1 or 255, got 2"):
            checked_sample("a", image, labels, classes=2)


class TestStreet:
    def test_classes_are_those_of_the_shipped_bundle(self) -> None:
        classes = Bundle.open(BUNDLE).spec.classes
        street = Street("train")
        assert [entry.name for entry in classes] == list(street.class_names)
        assert [entry.colour for entry in classes] == list(street.colours)

    def test_samples_are_repeatable_and_differ(self) -> None:
        dataset = Street("train", seed=4, count=3, size=(40, 56))
        again = Street("train", seed=5, count=3, size=(40, 56))
        first, second = dataset[0], dataset[1]
        assert first.image.shape == (40, 56, 3)
        assert first.labels.shape == (40, 56)
        assert np.array_equal(second.image, again[0].image)
        assert np.array_equal(second.labels, again[0].labels)
        assert not np.array_equal(first.image, second.image)
        assert len({sample.name for sample in iterate(dataset)}) == 3

    @pytest.mark.parametrize("index", [-1, 3])
    def test_index_out_of_range(self, index: int) -> None:
        with pytest.raises(IndexError):
            Street("train", count=3, size=(40, 56))[index]

    @pytest.mark.parametrize("seed", [0, 1_000_000])
    def test_training_and_validation_share_no_scene(self, seed: int) -> None:
        size = (16, 16)
        train = Street("train", seed=seed, count=2, size=size)
        names = {
            sample.name
            for start in (0, seed)
            for sample in iterate(Street("val", seed=start, count=2, size=size))
        }
        assert names.isdisjoint(sample.name for sample in iterate(train))


class TestOpen:
    def test_a_folder_in_a_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for i in range(2):
            write_picture(tmp_path / "val" / "images" / f"{i}.jpg", (2, 3))
            write_png(tmp_path / "val" / "labels" / f"{i}.png", np.zeros((2, 3), np.uint8))
        monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))
        for folder in (str(tmp_path), "$SOME_FOLDER", "${SOME_FOLDER}", "~"):
            assert len(open_dataset(f"camvid:{folder}", "val")) == 2

    def test_unset_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SOME_FOLDER", raising=False)
        with pytest.raises(DatasetError, match=r"variable in 'camvid:\$SOME_FOLDER' to be set"):
            open_dataset("camvid:$SOME_FOLDER", "val")

    @pytest.mark.parametrize(
        ("spec", "count", "first", "size"),
        [
            ("street", 100, 0, (360, 480)),
            ("street:7", 100, 7, (360, 480)),
            ("street:7:3", 3, 7, (360, 480)),
            ("street:7:3:64x48", 3, 7, (48, 64)),
        ],
    )
    def test_street(self, spec: str, count: int, first: int, size: tuple[int, int]) -> None:
        dataset = open_dataset(spec, "train")
        assert len(dataset) == count
        sample = dataset[0]
        assert sample.name == f"street_{first}"
        assert sample.labels.shape == size

    @pytest.mark.parametrize(
        "spec", ["", "camvid", "camvid:", "ade20k:/x", "voc", "streets", "street:a", "street:1:b",
                 "street:1:2:64", "street:1:2:64x48x3", "street:1:2:64x48:5", "street:1:2:axb"],
    )  # fmt: skip
    def test_unknown_forms(self, spec: str) -> None:
        with pytest.raises(DatasetError, match=r"expected .*street\[:SEED"):
            open_dataset(spec, "train")

    def test_an_unknown_kind_is_answered_with_the_known_ones(self) -> None:
        with pytest.raises(DatasetError) as info:
            open_dataset("ade20k:/x", "train")
        for kind in ("bdd100k", "camvid", "cityscapes", "deepglobe", "folder", "isic", "voc"):
            assert f"{kind}:ROOT" in str(info.value)
            assert f"| `{kind}:ROOT` |" in DOCUMENTATION.read_text()
        assert "got 'ade20k:/x'" in str(info.value)

    @pytest.mark.parametrize("spec", ["street:0:-3", "street:0:0", "street:0:2:8x64"])
    def test_impossible_street(self, spec: str) -> None:
        with pytest.raises(DatasetError):
            open_dataset(spec, "train")[0]
