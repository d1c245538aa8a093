# SPDX-License-Identifier: Apache-2.0
"""Frames and their results written as a Rerun recording.

Shape legend: H, W picture.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.records import STAGES, Map, Prediction, StageTimes
from sparserefine_ros.render import REFINED_COLOUR, draw_legend
from sparserefine_ros.view import layout
from sparserefine_ros.view.footage import Shot
from sparserefine_ros.view.library import rerun_module

WANTED: Final = frozenset({Map.LABELS, Map.ENTROPY, Map.REFINED, Map.DENSE_LABELS})

_JPEG_QUALITY: Final = 85
_PNG_LEVEL: Final = 6
_STEPS_PER_NAT: Final = 100.0
_FLUSH_TIMEOUT_S: Final = 60.0
_OPACITY: Final = 0.5
_DIMMED: Final = (0, 0, 0, 150)
# Okabe and Ito's, and greys for what takes little.
_STAGE_COLOURS: Final = {
    layout.TOTAL: (130, 130, 130),
    "resize": (90, 90, 90),
    "dense": (0, 114, 178),
    "entropy": (240, 228, 66),
    "selection": (86, 180, 233),
    "plan": (0, 158, 115),
    "refine": (213, 94, 0),
    "fusion": (204, 121, 167),
    "maps": (170, 170, 170),
}
_WHITE: Final = (255, 255, 255)


class Recording:
    """A recording in a file, which is whole once it is closed.

    Args:
        path: of the file.
        bundle: its classes and colours are used.
        fps: at which the viewer plays it.

    Raises:
        BackendError: the library rerun is not installed.
        ConfigurationError: it is switched off.
    """

    def __init__(self, path: Path, bundle: Bundle, *, fps: float) -> None:
        self._rerun = rerun_module()
        self._bundle = bundle
        self._writable = True
        self._stream = self._rerun.RecordingStream("sparserefine")
        if not self._rerun.is_enabled(self._stream):
            raise ConfigurationError(
                "expected rerun to record, the environment variable RERUN switches it off; unset it"
            )
        # What was computed when says nothing of the frames.
        self._stream.set_log_time_enabled(False)
        self._stream.save(path, default_blueprint=layout.make_layout(fps=fps))
        self._describe_classes()
        self._describe_plots()

    def add(self, shot: Shot, prediction: Prediction) -> None:
        """Write a picture and its `WANTED` maps.

        Raises:
            SparseRefineError: they cannot be written.
        """
        assert prediction.labels is not None
        assert prediction.dense_labels is not None
        assert prediction.entropy is not None
        assert prediction.refined is not None
        rerun, stream = self._rerun, self._stream
        stream.reset_time()
        stream.set_time(layout.FRAME, sequence=shot.index)
        if shot.stamp_ns is not None:
            stream.set_time(layout.STAMP, timestamp=np.datetime64(shot.stamp_ns, "ns"))
        self._log(layout.PICTURE, self._jpeg(shot.image))
        for path, labels in (
            (layout.LABELS, prediction.labels),
            (layout.DENSE_LABELS, prediction.dense_labels),
        ):
            self._log(path, rerun.SegmentationImage(labels, opacity=_OPACITY, draw_order=1.0))
        refined = prediction.refined.view(np.uint8)
        self._log(layout.REFINED, rerun.SegmentationImage(refined, opacity=1.0, draw_order=2.0))
        self._log(layout.OUTLINE, self._outline(refined))
        self._log(layout.ENTROPY, self._entropy(prediction.entropy))
        mean_nats = float(prediction.entropy.mean())
        self._log(layout.SHARE, rerun.Scalars(100.0 * prediction.refined_share))
        self._log(layout.ENTROPY_BEFORE, rerun.Scalars(float(prediction.dense.entropy.mean())))
        self._log(layout.ENTROPY_AFTER, rerun.Scalars(mean_nats))
        for stage, ms in _times(prediction.times).items():
            self._log(f"{layout.LATENCY}/{stage}", rerun.Scalars(ms))
        text = _numbers(shot, prediction, mean_nats)
        self._log(layout.NUMBERS, rerun.TextDocument(text, media_type="text/markdown"))
        self._flush()

    def close(self) -> None:
        """Write what is left and close the file.

        Raises:
            SparseRefineError: it cannot be written.
        """
        try:
            if self._writable:
                self._flush()
        finally:
            self._stream.disconnect()

    def _flush(self) -> None:
        """Write what was logged, so that a full disk is noticed at once."""
        try:
            self._stream.flush(timeout_sec=_FLUSH_TIMEOUT_S)
        except RuntimeError as err:
            # Another flush would wait for a writer that has ended.
            self._writable = False
            raise SparseRefineError(
                f"cannot write the recording ({err}); make room on the disk and start again"
            ) from err

    def _log(self, path: str, what: Any, *, static: bool = False) -> None:
        self._stream.log(path, what, static=static, strict=True)

    def _describe_classes(self) -> None:
        rerun = self._rerun
        names, palette = self._bundle.class_names, self._bundle.palette
        classes = [
            rerun.AnnotationInfo(index, name, palette[index].tolist())
            for index, name in enumerate(names)
        ]
        self._log(layout.PICTURE, rerun.AnnotationContext(classes), static=True)
        refined = [
            rerun.AnnotationInfo(0, "not refined", _DIMMED),
            rerun.AnnotationInfo(1, "refined", REFINED_COLOUR),
        ]
        self._log(layout.REFINED, rerun.AnnotationContext(refined), static=True)
        legend = cv2.cvtColor(draw_legend(names, palette), cv2.COLOR_RGB2BGR)
        _, png = cv2.imencode(".png", legend)
        picture = rerun.EncodedImage(contents=png.tobytes(), media_type="image/png")
        self._log(layout.LEGEND, picture, static=True)

    def _describe_plots(self) -> None:
        lines = self._rerun.SeriesLines
        self._log(layout.SHARE, lines(names=["refined"], colors=[REFINED_COLOUR]), static=True)
        for path, name, colour in (
            (layout.ENTROPY_BEFORE, "before refinement", _STAGE_COLOURS["dense"]),
            (layout.ENTROPY_AFTER, "after", _STAGE_COLOURS["refine"]),
        ):
            self._log(path, lines(names=[name], colors=[colour]), static=True)
        for stage in (layout.TOTAL, *STAGES):
            width = 2.5 if stage == layout.TOTAL else 1.0
            line = lines(names=[stage], colors=[_STAGE_COLOURS[stage]], widths=[width])
            self._log(f"{layout.LATENCY}/{stage}", line, static=True)

    def _jpeg(self, image: NDArray[np.uint8]) -> Any:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        return self._rerun.EncodedImage(
            contents=data.tobytes(), media_type="image/jpeg", draw_order=0.0
        )

    def _entropy(self, entropy: NDArray[np.float32]) -> Any:
        """The map as a depth image of hundredths of a nat, whose values the viewer shows in nats.

        In 16 bits: the viewer scales the range of encoded 8-bit depth in another way.
        """
        hundredths = np.rint(entropy * _STEPS_PER_NAT).astype(np.uint16)
        _, png = cv2.imencode(".png", hundredths, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
        most_nats = math.log(len(self._bundle.class_names))
        return self._rerun.EncodedDepthImage(
            png.tobytes(),
            media_type="image/png",
            meter=_STEPS_PER_NAT,
            depth_range=(0.0, most_nats * _STEPS_PER_NAT),
            colormap="Inferno",
        )

    def _outline(self, refined: NDArray[np.uint8]) -> Any:
        contours, _ = cv2.findContours(refined, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        # Pixel centres; the first point again at the end closes the line.
        strips = [np.concatenate([line, line[:1]])[:, 0] + 0.5 for line in contours]
        return self._rerun.LineStrips2D(strips, colors=[_WHITE], radii=[-0.5], draw_order=3.0)


def _times(times: StageTimes) -> dict[str, float]:
    """Milliseconds by stage, and their sum."""
    return {layout.TOTAL: times.total_ms, **times.milliseconds}


def _numbers(shot: Shot, prediction: Prediction, mean_nats: float) -> str:
    """Two tables in Markdown: the frame, and what its stages took."""
    height, width = prediction.size
    low_height, low_width = prediction.low_res_size
    frame = {
        "picture": shot.name,
        "size": f"{width} x {height}",
        "dense at": f"{low_width} x {low_height}",
        "refined": f"{prediction.refined_share:.1%}",
        "budget hit": "yes" if prediction.budget_hit else "no",
        "entropy": f"{mean_nats:.3f} nats",
    }
    times = {stage: f"{ms:.1f} ms" for stage, ms in _times(prediction.times).items()}
    return f"{_table('frame', frame)}\n\n{_table('latency', times)}\n"


def _table(title: str, rows: dict[str, str]) -> str:
    lines = [f"| {title} | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items())]
    return "\n".join(lines)
