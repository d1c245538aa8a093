# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import logging
import os
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sparserefine_ros.errors import ImageError
from sparserefine_ros.sources import open_source, read_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write(path: Path, rgb: NDArray[np.generic]) -> Path:
    """Encode without the code under test; [H, W, 3] or [H, W, 4] in RGB order, or [H, W]."""
    if rgb.ndim == 3:
        rgb = rgb[..., [2, 1, 0, 3][: rgb.shape[2]]]
    assert cv2.imwrite(str(path), np.ascontiguousarray(rgb))
    return path


def quarters(height: int = 48, width: int = 80) -> NDArray[np.uint8]:
    """Red, green; blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, : width // 2] = BLUE
    picture[height // 2 :, width // 2 :] = 255
    return picture


def exif_jpeg(path: Path, rgb: NDArray[np.uint8], orientation: int) -> Path:
    """A JPEG with an EXIF orientation tag, put together by hand."""
    _, encoded = cv2.imencode(".jpg", rgb[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 100))
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"MM\x00\x2a" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    segment = b"Exif\x00\x00" + tiff
    data = encoded.tobytes()
    path.write_bytes(
        data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    )
    return path


def write_video(path: Path, frames: int, *, fps: float = 12.0, codec: str = "MJPG") -> Path:
    """Frame i is red on its left and grey of level 10 * i on its right."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (64, 48))
    assert writer.isOpened()
    for index in range(frames):
        bgr = np.full((48, 64, 3), 10 * index, np.uint8)
        bgr[:, :32] = (0, 0, 255)
        writer.write(bgr)
    writer.release()
    return path


class TestImages:
    @pytest.mark.parametrize("suffix", [".png", ".BMP", ".tif", ".ppm"])
    def test_lossless_files_come_back_exactly(self, tmp_path: Path, suffix: str) -> None:
        picture = np.random.default_rng(1).integers(0, 256, (17, 23, 3), np.uint8)
        source = open_source(write(tmp_path / f"a.b{suffix}", picture))
        (frame,) = source
        assert (frame.name, source.length, source.fps) == ("a.b", 1, 1.0)
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
        np.testing.assert_array_equal(frame.image, picture)

    def test_a_jpeg_keeps_its_channel_order(self, tmp_path: Path) -> None:
        (frame,) = open_source(str(write(tmp_path / "a.jpeg", quarters())))
        np.testing.assert_allclose(frame.image[4, 4], RED, atol=8)
        np.testing.assert_allclose(frame.image[-4, 4], BLUE, atol=8)

    def test_grey_becomes_colour(self, tmp_path: Path) -> None:
        grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
        image = read_image(write(tmp_path / "grey.png", grey))
        np.testing.assert_array_equal(image, np.stack([grey] * 3, -1))

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    def test_16_bit_becomes_8_bit(self, tmp_path: Path, suffix: str) -> None:
        deep = np.random.default_rng(2).integers(0, 65536, (9, 11, 3)).astype(np.uint16)
        image = read_image(write(tmp_path / f"deep{suffix}", deep))
        # Rounding up or down are both right.
        np.testing.assert_allclose(image.astype(float), deep / 257.0, atol=1.0)

    def test_transparency_is_left_out(self, tmp_path: Path) -> None:
        rgba = np.dstack([quarters(), np.full((48, 80), 7, np.uint8)])
        np.testing.assert_array_equal(read_image(write(tmp_path / "a.png", rgba)), quarters())

    @pytest.mark.parametrize(
        ("orientation", "turned"),
        [
            (1, lambda stored: stored),
            (3, lambda stored: np.rot90(stored, 2)),
            (6, lambda stored: np.rot90(stored, -1)),
            (8, lambda stored: np.rot90(stored, 1)),
        ],
    )
    def test_exif_orientation_is_applied(self, tmp_path: Path, orientation: int, turned) -> None:
        image = read_image(exif_jpeg(tmp_path / "a.jpg", quarters(), orientation))
        expected = turned(quarters())
        assert image.shape == expected.shape
        for row, column in itertools.product((5, -5), (5, -5)):
            np.testing.assert_allclose(image[row, column], expected[row, column], atol=8)

    @pytest.mark.parametrize("name", ["cut.png", "cut.jpg"])
    def test_a_file_that_is_cut_off_is_refused(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path / name, quarters())
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ImageError, match=rf"{name}.*cut off"):
            list(open_source(path))

    @pytest.mark.parametrize("content", [b"", b"no picture at all"])
    def test_a_file_that_is_no_picture_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "fake.png"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"fake\.png.*expected an.*encoded picture"):
            list(open_source(path))


class TestFolders:
    def test_natural_order_and_only_images(self, tmp_path: Path) -> None:
        for name in ("frame_10.png", "frame_9.PNG", "Frame_1.jpg", "frame_2.bmp", ".hidden.png"):
            write(tmp_path / name, quarters(16, 16))
        (tmp_path / "notes.txt").write_text("no picture")
        (tmp_path / "inner.png").mkdir()
        write(tmp_path / "inner.png" / "frame_0.png", quarters())
        source = open_source(tmp_path)
        names = ["Frame_1", "frame_2", "frame_9", "frame_10"]
        assert [frame.name for frame in source] == names
        assert [frame.name for frame in source] == names, "a second pass starts again"
        assert (source.length, source.fps) == (4, 10.0)

    def test_a_pipe_is_no_picture(self, tmp_path: Path) -> None:
        """Opening one waits for a writer."""
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match=r"pipe\.png', which is a device or a pipe"):
            open_source(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match="found none in"):
            open_source(tmp_path)

    def test_a_broken_picture_raises_when_its_turn_comes(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png", "c.png"):
            write(tmp_path / name, quarters())
        (tmp_path / "b.png").write_bytes(b"broken")
        frames = iter(open_source(tmp_path))
        assert next(frames).name == "a"
        with pytest.raises(ImageError, match=r"b\.png"):
            next(frames)

    def test_a_link_that_leads_nowhere_is_told(self, tmp_path: Path) -> None:
        write(tmp_path / "b.png", quarters())
        (tmp_path / "a.png").symlink_to(tmp_path / "nothing.png")
        with pytest.raises(ImageError, match=r"a\.png"):
            next(iter(open_source(tmp_path)))

    def test_a_folder_without_images_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        with pytest.raises(ImageError, match=r"folder of images.*\.png.*found none in"):
            open_source(tmp_path)


class TestVideos:
    @pytest.mark.parametrize(("suffix", "codec"), [(".avi", "MJPG"), (".mp4", "mp4v")])
    def test_frames_length_and_rate(self, tmp_path: Path, suffix: str, codec: str) -> None:
        source = open_source(write_video(tmp_path / f"drive{suffix}", 12, codec=codec))
        assert source.length == 12
        assert source.fps == pytest.approx(12.0)
        for _ in range(2):
            frames = list(source)
            assert [frame.name for frame in frames] == [f"drive_{i:05d}" for i in range(12)]
            for index, frame in enumerate(frames):
                assert frame.image.shape == (48, 64, 3)
                np.testing.assert_allclose(frame.image[24, 50], [10 * index] * 3, atol=6)
                np.testing.assert_allclose(frame.image[24, 8], RED, atol=30)

    def test_a_stream_without_a_length_is_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "stream.mjpeg"
        pictures = [cv2.imencode(".jpg", quarters(48, 64))[1].tobytes() for _ in range(7)]
        path.write_bytes(b"".join(pictures))
        source = open_source(path)
        assert source.length == len(list(source)) == 7
        assert source.fps > 0

    @pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
    def test_a_file_that_is_no_video_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "fake.mp4"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"expected a video file, got .*fake\.mp4"):
            open_source(path)

    def test_a_video_that_is_cut_off_ends_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write_video(tmp_path / "cut.avi", 20)
        source = open_source(path)
        data = path.read_bytes()
        # The tenth picture of the file, each being a JPEG of its own.
        path.write_bytes(data[: [hit.start() for hit in re.finditer(b"\xff\xd8\xff", data)][9]])
        with caplog.at_level(logging.WARNING):
            frames = list(source)
        assert 0 < len(frames) < 18
        assert f"ended after {len(frames)} of about 20" in caplog.text


class TestStreet:
    def test_an_endless_repeatable_drive(self) -> None:
        source = open_source("street:7:96x48")
        assert source.length is None
        assert source.fps == 10.0
        once, again = (list(itertools.islice(source, 3)) for _ in range(2))
        assert [frame.name for frame in once] == [f"street_7_{i:05d}" for i in range(3)]
        for first, second in zip(once, again, strict=True):
            assert first.image.shape == (48, 96, 3)
            np.testing.assert_array_equal(first.image, second.image)
        assert (once[0].image != once[2].image).mean() > 0.05

    @pytest.mark.parametrize(
        ("spec", "same"),
        [
            ("street", "street:0:1280x640"),
            ("street:3", "street:3:1280x640"),
            ("street:64x32", "street:0:64X32"),
        ],
    )
    def test_parts_can_be_left_out(self, spec: str, same: str) -> None:
        one, other = (next(iter(open_source(text))).image for text in (spec, same))
        np.testing.assert_array_equal(one, other)

    def test_seeds_give_other_streets(self) -> None:
        one, other = (next(iter(open_source(f"street:{seed}:64x32"))).image for seed in (1, 2))
        assert (one != other).mean() > 0.2

    @pytest.mark.parametrize(
        "spec",
        ["street:", "street:x", "street:-1", "street:1:2", "street:1:64", "street:1:64x32:9"],
    )
    def test_malformed_texts_are_refused(self, spec: str) -> None:
        with pytest.raises(ImageError, match=rf"expected street\[:SEED\].*got '{spec}'"):
            open_source(spec)

    @pytest.mark.parametrize("size", ["15x64", "64x15", "16385x64", "64x0"])
    def test_impossible_sizes_are_refused(self, size: str) -> None:
        with pytest.raises(ImageError, match=r"16 \.\. 16384 pixels"):
            open_source(f"street:1:{size}")

    def test_a_path_wins_when_written_as_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "street").mkdir()
        write(tmp_path / "street" / "a.png", quarters())
        monkeypatch.chdir(tmp_path)
        assert open_source("./street").length == 1
        assert open_source("street").length is None


def test_a_missing_path_tells_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"image file, a folder.*video.*street.*no file.*nowhere"):
        open_source(tmp_path / "nowhere")


def test_an_empty_text_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png", quarters())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match="no file or folder ''"):
        open_source("")


def test_a_path_the_system_refuses_is_no_traceback() -> None:
    with pytest.raises(ImageError, match=r"cannot read 'x{300}'.*too long"):
        open_source("x" * 300)


def test_an_unknown_file_type_tells_what_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"unknown type.*model\.onnx.*\.png.*\.mp4"):
        open_source(path)
