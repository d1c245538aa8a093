# SPDX-License-Identifier: Apache-2.0
"""Results on disk: label images, pictures to look at, a contact sheet and a short video."""

from __future__ import annotations

import itertools
import logging
import math
import re
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.files import prepare_folder
from sparserefine_ros.render import (
    contact_sheet,
    draw_entropy,
    draw_legend,
    draw_overlay,
    draw_refined,
    narrow,
)

# Files that sum up all frames.
VIDEO: Final = "overlay.mp4"
SHEET: Final = "contact_sheet.jpg"
LEGEND: Final = "legend.png"
SUMMARIES: Final = frozenset({VIDEO, SHEET, LEGEND})

_SHEET_FRAMES: Final = 6
_SHEET_WIDTH: Final = 480
# JPEG has room for 65500 rows.
_SHEET_HEIGHT: Final = 960
_VIDEO_WIDTH: Final = 1280

_log = logging.getLogger(__name__)


class ResultWriter:
    """Writes each frame's pictures as they come, and the sheet when closed.

    For frame NAME: `NAME_labels.png` (uint8 class ids, lossless), `NAME_overlay.jpg`,
    `NAME_entropy.jpg`, `NAME_refined.jpg`; a second frame of a name is NAME_2. Besides these,
    `overlay.mp4`, `contact_sheet.jpg` and `legend.png`.

    Args:
        folder: created when missing.
        bundle: its classes and colours are used.
        video_fps: frames per second of the video.
        expected: number of frames to come, to spread the sheet over them; None when unknown.

    Raises:
        ConfigurationError: the folder cannot be created.
    """

    def __init__(
        self, folder: Path, bundle: Bundle, *, video_fps: float, expected: int | None = None
    ) -> None:
        prepare_folder(folder)
        self.folder = folder
        self.frames = 0
        self._stems: set[str] = set()
        self._bundle = bundle
        self._fps = video_fps
        self._sheet_every = max(1, math.ceil((expected or _SHEET_FRAMES) / _SHEET_FRAMES))
        self._sheet: list[NDArray[np.uint8]] = []
        self._captions: list[str] = []
        self._video: cv2.VideoWriter | None = None
        self._video_size = (0, 0)
        self._write(LEGEND, draw_legend(bundle.class_names, bundle.palette))

    def add(
        self,
        name: str,
        image: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        entropy: NDArray[np.float32],
        refined: NDArray[np.bool_],
    ) -> None:
        """Write one frame: RGB picture uint8 [H, W, 3] and its maps [H, W]."""
        stem = self._new_stem(name)
        overlay = draw_overlay(image, labels, self._bundle.palette, refined=refined)
        most = math.log(len(self._bundle.class_names))
        pictures = {
            "overlay": overlay,
            "entropy": draw_entropy(entropy, max_nats=most),
            "refined": draw_refined(image, refined),
        }
        self._write(f"{stem}_labels.png", labels)
        for kind, picture in pictures.items():
            self._write(f"{stem}_{kind}.jpg", picture)
        if self.frames % self._sheet_every == 0 and len(self._sheet) < 4 * _SHEET_FRAMES:
            self._sheet += [
                narrow(p, _SHEET_WIDTH, _SHEET_HEIGHT) for p in (image, *pictures.values())
            ]
            self._captions += [stem, "labels", "entropy", f"refined {refined.mean():.1%}"]
        self._film(overlay)
        self.frames += 1

    def close(self) -> None:
        """Write the contact sheet and finish the video."""
        if self._video is not None:
            self._video.release()
            self._video = None
        if self._sheet:
            sheet = contact_sheet(self._sheet, columns=4, captions=self._captions)
            self._write(SHEET, sheet)

    def _new_stem(self, name: str) -> str:
        """A file name for a frame that no other one of this folder has."""
        plain = re.sub(r"[^\w.-]+", "_", name) or "frame"
        numbered = (f"{plain}_{number}" for number in itertools.count(2))
        stem = next(s for s in itertools.chain([plain], numbered) if s not in self._stems)
        self._stems.add(stem)
        return stem

    def _film(self, overlay: NDArray[np.uint8]) -> None:
        frame = narrow(overlay, _VIDEO_WIDTH)
        # Encoders want even sides.
        size = (frame.shape[1] // 2 * 2, frame.shape[0] // 2 * 2)
        if 0 in size:
            return
        if self._video is None:
            # FFmpeg takes what stands before a colon in a relative path for a protocol.
            path = str((self.folder / VIDEO).absolute())
            self._video = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size)
            self._video_size = size
            if not self._video.isOpened():
                _log.warning("%s is not written: OpenCV here cannot write MP4", path)
        if size != self._video_size:
            frame = cv2.resize(frame, self._video_size)  # type: ignore[assignment]
        frame = frame[: self._video_size[1], : self._video_size[0]]
        self._video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def _write(self, name: str, picture: NDArray[np.uint8]) -> None:
        path = self.folder / name
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
        if not cv2.imwrite(str(path), bgr):
            raise SparseRefineError(
                f"cannot write {path}; is the disk full or the folder read-only?"
            )
