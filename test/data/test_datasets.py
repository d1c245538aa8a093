# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import smooth_picture
from numpy.typing import NDArray

from sparserefine_ros.data.datasets import (
    CLASS_NAMES,
    CamVid,
    Preloaded,
    Sample,
    Street,
    checked_sample,
    iterate,
    open_dataset,
)
from sparserefine_ros.data.street import CLASS_NAMES as STREET_NAMES
from sparserefine_ros.errors import DatasetError


def random_labels(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    labels = np.random.default_rng(seed).integers(0, 12, (height, width)).astype(np.uint8)
    labels[labels == 11] = 255
    return labels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set in CamVid's layout: three pictures for training, two for validation."""
    for split, count in (("train", 3), ("val", 2)):
        for folder in ("images", "labels"):
            (tmp_path / split / folder).mkdir(parents=True)
        for i in range(count):
            image = smooth_picture(24, 32, seed=i)
            # A red corner, to tell RGB from BGR.
            image[:8, :8] = (250, 20, 30)
            cv2.imwrite(
                str(tmp_path / split / "images" / f"b{i}.jpg"),
                image[:, :, ::-1],
                [cv2.IMWRITE_JPEG_QUALITY, 98],
            )
            cv2.imwrite(str(tmp_path / split / "labels" / f"b{i}.png"), random_labels(24, 32, i))
    return tmp_path


class TestCamVid:
    def test_reads_pictures_and_labels(self, root: Path) -> None:
        dataset = CamVid(root, "train")
        samples = list(iterate(dataset))
        assert [sample.name for sample in samples] == ["b0", "b1", "b2"]
        assert dataset.class_names == CLASS_NAMES
        for i, sample in enumerate(samples):
            assert (sample.image.dtype, sample.image.shape) == (np.uint8, (24, 32, 3))
            assert np.array_equal(sample.labels, random_labels(24, 32, i))
            red, green, blue = sample.image[2:6, 2:6].mean((0, 1))
            assert red > 220
            assert max(green, blue) < 60

    def test_splits(self, root: Path) -> None:
        assert len(CamVid(root, "train")) == 3
        assert len(CamVid(root, "val")) == 2

    def test_no_pictures(self, tmp_path: Path) -> None:
        with pytest.raises(
            DatasetError, match=r"expected CamVid pictures at .*train/images/\*.jpg"
        ):
            CamVid(tmp_path, "train")

    def test_missing_labels_are_counted(self, root: Path) -> None:
        for name in ("b0.png", "b2.png"):
            (root / "train" / "labels" / name).unlink()
        with pytest.raises(DatasetError, match=r"2 are missing, first .*b0.png"):
            CamVid(root, "train")

    @pytest.mark.parametrize("file", ["images/b1.jpg", "labels/b1.png"])
    def test_a_broken_file(self, root: Path, file: str) -> None:
        (root / "train" / file).write_bytes(b"broken")
        dataset = CamVid(root, "train")
        assert dataset[0].name == "b0"
        with pytest.raises(DatasetError, match=f"cannot decode .*{file}; restore"):
            dataset[1]

    def test_label_file_in_colour(self, root: Path) -> None:
        cv2.imwrite(str(root / "train" / "labels" / "b0.png"), smooth_picture(24, 32))
        with pytest.raises(
            DatasetError, match=r"b0: expected labels uint8 \[24, 32\].*\[24, 32, 3\]"
        ):
            CamVid(root, "train")[0]


class TestCheckedSample:
    def test_accepts_every_class_and_ignored(self) -> None:
        labels = np.array([[0, 10, 255]], np.uint8)
        image = np.zeros((1, 3, 3), np.uint8)
        assert np.array_equal(checked_sample("a", image, labels).labels, labels)

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
            checked_sample("a", np.zeros((2, 3, 3), np.uint8), labels)


class TestStreet:
    def test_names_agree_with_the_renderer(self) -> None:
        assert CLASS_NAMES == STREET_NAMES == Street("train").class_names

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


class TestPreloaded:
    def test_keeps_what_the_data_set_gave(self) -> None:
        reads: list[int] = []

        class Counted:
            class_names = ("a", "b")

            def __len__(self) -> int:
                return 3

            def __getitem__(self, index: int) -> Sample:
                reads.append(index)
                value = np.full((2, 2), index, np.uint8)
                return Sample(str(index), np.zeros((2, 2, 3), np.uint8), value)

        preloaded = Preloaded(Counted())
        assert preloaded.class_names == ("a", "b")
        assert [preloaded[i].name for i in (2, 0, 2)] == ["2", "0", "2"]
        assert len(preloaded) == 3
        assert reads == [0, 1, 2]


class TestOpen:
    def test_camvid(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_FOLDER", str(root))
        for spec in (f"camvid:{root}", "camvid:$SOME_FOLDER", "camvid:${SOME_FOLDER}"):
            assert len(open_dataset(spec, "val")) == 2

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
        "spec", ["", "camvid", "camvid:", "cityscapes:/x", "streets", "street:a", "street:1:b",
                 "street:1:2:64", "street:1:2:64x48x3", "street:1:2:64x48:5", "street:1:2:axb"],
    )  # fmt: skip
    def test_unknown_forms(self, spec: str) -> None:
        with pytest.raises(DatasetError, match=r"expected .*street\[:SEED"):
            open_dataset(spec, "train")

    @pytest.mark.parametrize("spec", ["street:0:-3", "street:0:0", "street:0:2:8x64"])
    def test_impossible_street(self, spec: str) -> None:
        with pytest.raises(DatasetError):
            open_dataset(spec, "train")[0]
