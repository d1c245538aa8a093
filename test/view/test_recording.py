# SPDX-License-Identifier: Apache-2.0
"""What is in a recording, and that it is whole or not there."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import CLASSES, smooth_picture

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import (
    BackendError,
    ConfigurationError,
    ImageError,
    SparseRefineError,
)
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS, STAGES
from sparserefine_ros.view.recording import Recording
from sparserefine_ros.view.view import record_view

SIZES = ((60, 81), (47, 64))
PICTURES = {"picture", "picture/labels", "picture/dense_labels", "picture/refined"}
OTHERS = {"picture/outline", "entropy", "numbers", "plots/refined_percent"}
PLOTS = {
    *(f"plots/mean_entropy_nats/{when}" for when in ("before", "after")),
    *(f"plots/latency_ms/{stage}" for stage in ("total", *STAGES)),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two pictures of different sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, size in enumerate(SIZES):
        bgr = cv2.cvtColor(smooth_picture(*size, seed=index), cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(folder / f"view_{index}.png"), bgr)
    return folder


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def test_the_recording_holds_the_pipelines_results(
    bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    from view.recorded import component, read_rows

    out = tmp_path / "new" / "view.rrd"
    assert record_view(bundle, PipelineOptions(), str(pictures), out) == 2
    assert [path.name for path in out.parent.iterdir()] == ["view.rrd"]
    rows = read_rows(out)
    expected = {f"/{name}" for name in (*PICTURES, *OTHERS, *PLOTS)}
    assert {name for name in rows if not name.startswith("/__")} == expected
    assert all([row["frame"] for row in rows[name]] == [0, 1] for name in expected)
    pipeline = Pipeline(bundle)
    for index, size in enumerate(SIZES):
        image = smooth_picture(*size, seed=index)
        result = pipeline(image, ALL_MAPS)
        for name in ("labels", "dense_labels", "refined"):
            pixels = component(rows[f"/picture/{name}"][index], "SegmentationImage:buffer")
            shown = np.frombuffer(bytes(pixels), np.uint8).reshape(size)
            np.testing.assert_array_equal(shown, getattr(result, name), err_msg=name)
        depth = rows["/entropy"][index]
        png = np.frombuffer(bytes(component(depth, "EncodedDepthImage:blob")), np.uint8)
        nats = cv2.imdecode(png, cv2.IMREAD_UNCHANGED) / component(depth, "EncodedDepthImage:meter")
        np.testing.assert_allclose(nats, result.entropy, atol=0.0051)
        jpeg = np.frombuffer(bytes(component(rows["/picture"][index], "EncodedImage:blob")), "u1")
        shown = cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        # Of JPEG on noise; with swapped channels it would be above 50.
        assert np.abs(shown.astype(float) - image).mean() < 20
        share = component(rows["/plots/refined_percent"][index], "Scalars:scalars")
        assert share == pytest.approx(100 * result.refined_pixels / (size[0] * size[1]))
        for when, mean in (("before", result.dense.entropy), ("after", result.entropy)):
            value = component(rows[f"/plots/mean_entropy_nats/{when}"][index], "Scalars:scalars")
            assert value == pytest.approx(float(mean.mean()), rel=1e-5)
        latencies = {
            stage: component(rows[f"/plots/latency_ms/{stage}"][index], "Scalars:scalars")
            for stage in ("total", *STAGES)
        }
        assert latencies.pop("total") == pytest.approx(sum(latencies.values()))
        assert f"view_{index}" in component(rows["/numbers"][index], "TextDocument:text")


def test_outlines_enclose_the_refined_pixels(
    bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    from view.recorded import read_rows

    out = tmp_path / "view.rrd"
    record_view(bundle, PipelineOptions(), str(pictures), out)
    rows = read_rows(out)
    for index, size in enumerate(SIZES):
        refined = Pipeline(bundle)(smooth_picture(*size, seed=index), ALL_MAPS).refined
        assert refined.any()
        lines = rows["/picture/outline"][index]["LineStrips2D:strips"]
        assert lines
        points = np.floor(np.concatenate(lines)).astype(int)
        assert refined[points[:, 1], points[:, 0]].all()
        assert all(line[0] == line[-1] for line in lines)


def test_classes_have_their_names_and_colours(
    bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    from view.recorded import component, read_rows

    out = tmp_path / "view.rrd"
    record_view(bundle, PipelineOptions(), str(pictures), out, limit=1)
    ((row,), rows) = (read_rows(out, static=True)["/picture"], read_rows(out))
    infos = [entry["class_description"]["info"] for entry in component(row, _context(row))]
    assert [(info["id"], info["label"]) for info in infos] == [
        (index, each.name) for index, each in enumerate(CLASSES)
    ]
    red, green, blue = CLASSES[0].colour
    assert infos[0]["color"] == (red << 24 | green << 16 | blue << 8 | 255)
    assert len(rows["/picture/labels"]) == 1


def _context(row: dict[str, object]) -> str:
    (name,) = [name for name in row if name.startswith("AnnotationContext")]
    return name


def test_frames_of_a_bag_are_stamped(bundle: Bundle, tmp_path: Path) -> None:
    from bags.recording import raw, record
    from view.recorded import read_rows

    stamps_ns = (10**8, 1_700_000_000_123_456_789)
    bag = record(tmp_path / "drive", [raw(smooth_picture(24, 32), "rgb8", ns) for ns in stamps_ns])
    out = tmp_path / "view.rrd"
    assert record_view(bundle, PipelineOptions(), str(bag), out) == 2
    assert [row["stamp"] for row in read_rows(out)["/picture/labels"]] == list(stamps_ns)


@pytest.mark.parametrize("earlier", [True, False])
def test_a_failure_leaves_no_half_recording(
    bundle: Bundle, pictures: Path, tmp_path: Path, earlier: bool
) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    (pictures / "view_1.png").write_bytes(b"no picture")
    out = tmp_path / "out" / "view.rrd"
    if earlier:
        out.parent.mkdir()
        out.write_bytes(b"earlier")
    with pytest.raises(ImageError, match="view_1"):
        record_view(bundle, PipelineOptions(), str(pictures), out)
    assert [path.read_bytes() for path in out.parent.iterdir()] == [b"earlier"] * earlier


def test_a_full_disk_is_told(
    bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rerun = pytest.importorskip("rerun", reason="rerun-sdk is not installed")

    def flush(*_: object, **__: object) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(rerun.RecordingStream, "flush", flush)
    with pytest.raises(SparseRefineError, match=r"No space left on device.*make room"):
        record_view(bundle, PipelineOptions(), str(pictures), tmp_path / "view.rrd")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_an_empty_bag_is_told(bundle: Bundle, tmp_path: Path) -> None:
    from bags.recording import raw, record

    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    broken = raw(smooth_picture(12, 16), "yuv9000", 10**8)
    bag = record(tmp_path / "drive", [broken])
    with pytest.raises(ImageError, match=r"expected a picture in .*drive.*yuv9000"):
        record_view(bundle, PipelineOptions(), str(bag), tmp_path / "view.rrd")
    assert not (tmp_path / "view.rrd").exists()


def test_rerun_switched_off_is_told(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    monkeypatch.setenv("RERUN", "off")
    with pytest.raises(ConfigurationError, match="unset it"):
        Recording(tmp_path / "view.rrd", bundle, fps=1.0)


def test_a_missing_library_names_the_step(
    bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(BackendError, match=r"pip install 'rerun-sdk>=0.41'"):
        record_view(bundle, PipelineOptions(), str(pictures), tmp_path / "view.rrd")
    assert not list(tmp_path.glob("*view.rrd*"))
