# SPDX-License-Identifier: Apache-2.0
"""Label files are read as they are stored, and decoders take what they were told and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.files import write_palette_png, write_png
from numpy.typing import NDArray

from sparserefine_ros.data.label_files import (
    ColourLabels,
    IndexLabels,
    decode_labels,
    read_label_file,
)
from sparserefine_ros.errors import DatasetError, ImageError

FILE = Path("some") / "labels.png"


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_files_give_their_indices(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], depth: int, transparent: bool
) -> None:
    indices = np.random.default_rng(0).integers(0, 2**depth, (5, 13)).astype(np.uint8)
    write_palette_png(tmp_path / "a.png", indices, depth=depth, transparent=transparent)
    pixels = read_label_file(tmp_path / "a.png")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, indices)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_files_of_few_bits_give_their_numbers(tmp_path: Path, depth: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 2**depth, (5, 13)).astype(np.uint8)
    write_palette_png(tmp_path / "a.png", numbers, depth=depth, grey=True)
    assert np.array_equal(read_label_file(tmp_path / "a.png"), numbers)
    assert np.array_equal(decode_labels((tmp_path / "a.png").read_bytes()), numbers)


@pytest.mark.parametrize(
    "pixels",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000,
        np.arange(36, dtype=np.uint8).reshape(3, 4, 3),
    ],
    ids=["grey", "16-bit", "rgb"],
)
def test_other_files_give_their_pixels(tmp_path: Path, pixels: NDArray[Any]) -> None:
    write_png(tmp_path / "a.png", pixels)
    read = read_label_file(tmp_path / "a.png")
    assert read.dtype == pixels.dtype
    assert np.array_equal(read, pixels)


def test_palette_files_that_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_palette_png(path, np.zeros((20, 30), np.uint8))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=r"cannot decode .*a.png; restore"):
            read_label_file(path)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"\x89PNG\r\n\x1a\n", "decode"), (b"GIF", "decode")]
)
def test_bytes_that_are_no_picture(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match="expected an") as error:
        decode_labels(data)
    assert error.value.reason == reason


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read .*a.png: No such file"):
        read_label_file(tmp_path / "a.png")


class TestIndexLabels:
    def test_maps_numbers(self) -> None:
        pixels = np.array([[9, 4, 200], [0, 255, 9]], np.uint8)
        labels = IndexLabels({9: 0, 4: 1, 0: 255}, others=7)(pixels, FILE)
        assert labels.dtype == np.uint8
        assert labels.tolist() == [[0, 1, 7], [255, 7, 0]]

    def test_refuses_numbers_it_was_not_told(self) -> None:
        decode = IndexLabels({0: 0, 1: 1, 2: 2, 9: 1, 255: 255})
        with pytest.raises(
            DatasetError, match=r"labels.png: .*values 0 .. 2, 9, 255, got 3 at row 1, column 2;"
        ):
            decode(np.array([[0, 1, 2], [9, 255, 3]], np.uint8), FILE)

    @pytest.mark.parametrize(
        ("pixels", "message"),
        [
            (np.zeros((2, 3), np.uint16), r"got uint16 \[2, 3\]"),
            (np.zeros((2, 3, 3), np.uint8), r"got uint8 \[2, 3, 3\]"),
        ],
    )
    def test_refuses_other_pixels(self, pixels: NDArray[Any], message: str) -> None:
        with pytest.raises(DatasetError, match=f"labels.png: expected labels uint8.*{message}"):
            IndexLabels({0: 0})(pixels, FILE)


COLOURS = {(0, 0, 0): 255, (255, 0, 0): 0, (0, 0, 255): 1, (255, 255, 255): 2}


class TestColourLabels:
    def test_maps_colours(self) -> None:
        pixels = np.array([[[0, 0, 255], [255, 0, 0], [0, 0, 0], [255, 255, 255]]], np.uint8)
        assert ColourLabels(COLOURS)(pixels, FILE).tolist() == [[1, 0, 255, 2]]

    @pytest.mark.parametrize("colour", [(0, 0, 1), (255, 255, 254), (0, 255, 0)])
    def test_refuses_colours_it_was_not_told(self, colour: tuple[int, int, int]) -> None:
        pixels = np.array([[[255, 0, 0], colour]], np.uint8)
        red, green, blue = colour
        with pytest.raises(
            DatasetError, match=rf"labels.png: .*got RGB {red}, {green}, {blue} at row 0, column 1"
        ):
            ColourLabels(COLOURS)(pixels, FILE)

    def test_threshold_and_others(self) -> None:
        pixels = np.array([[[127, 3, 128], [128, 127, 127], [127, 200, 0]]], np.uint8)
        assert ColourLabels(COLOURS, threshold=128, others=9)(pixels, FILE).tolist() == [[1, 0, 9]]

    @pytest.mark.parametrize(
        "pixels",
        [
            np.zeros((2, 3), np.uint8),
            np.zeros((2, 3, 4), np.uint8),
            np.zeros((2, 3, 3), np.uint16),
        ],
    )
    def test_refuses_other_pixels(self, pixels: NDArray[Any]) -> None:
        with pytest.raises(DatasetError, match=r"labels.png: expected labels uint8 \[H, W, 3\]"):
            ColourLabels(COLOURS)(pixels, FILE)
