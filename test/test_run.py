# SPDX-License-Identifier: Apache-2.0
"""Pictures in, results on disk, without ROS."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import smooth_picture

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ConfigurationError, ImageError
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.run import run_source


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two PNG pictures of different sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, size in enumerate(((60, 81), (47, 64))):
        bgr = cv2.cvtColor(smooth_picture(*size, seed=index), cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(folder / f"view_{index}.png"), bgr)
    return folder


def test_labels_on_disk_are_the_pipelines(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    run_source(bundle, PipelineOptions(), str(pictures), tmp_path / "out")
    pipeline = Pipeline(bundle)
    for index, size in enumerate(((60, 81), (47, 64))):
        written = cv2.imread(str(tmp_path / "out" / f"view_{index}_labels.png"), -1)
        np.testing.assert_array_equal(written, pipeline(smooth_picture(*size, seed=index)).labels)


def test_pictures_sheet_and_video_are_whole(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_source(Bundle.open(tiny_bundle), PipelineOptions(), str(pictures), out)
    for kind in ("overlay", "entropy", "refined"):
        assert cv2.imread(str(out / f"view_0_{kind}.jpg")).shape == (60, 81, 3)
    assert cv2.imread(str(out / "contact_sheet.jpg")).shape[1] > 4 * 81
    assert cv2.imread(str(out / "legend.png")) is not None
    video = cv2.VideoCapture(str(out / "overlay.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 2


def test_pictures_of_one_name_are_all_written(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    for name in ("view_0.bmp", "vor Ort.png", "vor@Ort.png", "前.png"):
        shutil.copy(pictures / "view_1.png", pictures / name)
    out = tmp_path / "out"
    run_source(Bundle.open(tiny_bundle), PipelineOptions(), str(pictures), out)
    written = {path.name.removesuffix("_labels.png") for path in out.glob("*_labels.png")}
    assert written == {"view_0", "view_0_2", "view_1", "vor_Ort", "vor_Ort_2", "前"}


def test_limit(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    bundle, out = Bundle.open(tiny_bundle), tmp_path / "out"
    run_source(bundle, PipelineOptions(), str(pictures), out, limit=1)
    assert [path.name for path in out.glob("*_labels.png")] == ["view_0_labels.png"]
    with pytest.raises(ConfigurationError, match="limit of 0"):
        run_source(bundle, PipelineOptions(), str(pictures), out, limit=-1)


def test_pictures_that_cannot_be_read_are_left_out(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "view_0a.png").write_bytes(b"broken")
    out = tmp_path / "out"
    run_source(Bundle.open(tiny_bundle), PipelineOptions(), str(pictures), out)
    assert {path.name for path in out.glob("*_labels.png")} == {
        "view_0_labels.png", "view_1_labels.png"
    }  # fmt: skip
    told = capsys.readouterr()
    assert "view_0a.png" in told.err
    assert "2 frames, 1 left out" in told.out
    for path in pictures.glob("view_?.png"):
        path.unlink()
    with pytest.raises(ImageError, match=r"view_0a\.png"):
        run_source(Bundle.open(tiny_bundle), PipelineOptions(), str(pictures), tmp_path / "none")
    with pytest.raises(ImageError, match=r"view_0a\.png"):
        run_source(Bundle.open(tiny_bundle), PipelineOptions(), str(pictures / "view_0a.png"), out)


def test_missing_source(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere"):
        run_source(Bundle.open(tiny_bundle), PipelineOptions(), "nowhere/at_all", tmp_path)


@pytest.mark.parametrize("name", ["legend.png", "overlay.mp4"])
def test_what_is_read_is_not_replaced(tiny_bundle: Path, pictures: Path, name: str) -> None:
    """A folder into itself, and a file with the name of a result."""
    bundle = Bundle.open(tiny_bundle)
    if name.endswith("png"):
        read = (pictures / "view_0.png").rename(pictures / name)
    else:
        read = pictures / name
        size = (64, 48)
        video = cv2.VideoWriter(str(read), cv2.VideoWriter.fourcc(*"mp4v"), 10, size)
        for _ in range(3):
            video.write(smooth_picture(48, 64))
        video.release()
    before = read.read_bytes()
    for source in (pictures, read):
        with pytest.raises(ConfigurationError, match="where no result can replace"):
            run_source(bundle, PipelineOptions(), str(source), pictures)
    assert read.read_bytes() == before
    assert len(list(pictures.iterdir())) == (2 if name.endswith("png") else 3)


def test_a_video_with_a_colon_in_its_name_and_a_picture_of_one_row(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "10:00:00.mp4"
    video = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(3):
        video.write(smooth_picture(48, 64))
    video.release()
    run_source(Bundle.open(tiny_bundle), PipelineOptions(), name, Path("a:b"))
    assert len(list(Path("a:b").glob("*_labels.png"))) == 3
    assert Path("a:b/overlay.mp4").stat().st_size > 0
    cv2.imwrite(str(tmp_path / "row.png"), smooth_picture(1, 64))
    run_source(Bundle.open(tiny_bundle), PipelineOptions(), "row.png", Path("row"))
    assert Path("row/row_labels.png").exists()
