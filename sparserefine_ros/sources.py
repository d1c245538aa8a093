# SPDX-License-Identifier: Apache-2.0
"""Pictures one after the other, from files, videos or a procedural street."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.data.street import StreetScene
from sparserefine_ros.decoding import decode_picture
from sparserefine_ros.errors import ImageError
from sparserefine_ros.files import expanded
from sparserefine_ros.image import MAX_PIXELS

IMAGE_SUFFIXES: Final = (
    ".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif",
)  # fmt: skip
VIDEO_SUFFIXES: Final = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv",
    ".ts", ".mts", ".3gp", ".mjpeg", ".mjpg", ".gif",
)  # fmt: skip
ACCEPTED: Final = "an image file, a folder of images, a video file or street[:SEED][:WIDTHxHEIGHT]"

STREET_SEED: Final = 0
STREET_SIZE: Final = (640, 1280)
STREET_FPS: Final = 10.0
FOLDER_FPS: Final = 10.0
IMAGE_FPS: Final = 1.0
# Taken for a video that does not tell its own.
VIDEO_FPS: Final = 25.0

_SIDES: Final = range(16, 16385)
_STREET: Final = re.compile(r"street(?::(?P<seed>\d+))?(?::(?P<width>\d+)[xX](?P<height>\d+))?")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        name: file name without its folder and suffix, or a name with the frame's number.
        image: uint8 [H, W, 3], RGB, C-contiguous.
    """

    name: str
    image: NDArray[np.uint8]


# What is told of a picture that cannot be read.
Unreadable: TypeAlias = Callable[[ImageError], None]


class FrameSource(Protocol):
    """Pictures in order; each iteration starts from the first one and holds one at a time.

    Iterating raises ImageError, naming the file, at a picture that cannot be read, unless the
    source was opened to pass over such pictures of a folder.
    """

    @property
    def length(self) -> int | None:
        """Number of frames, of a video as announced by the file; None for an endless source."""

    @property
    def fps(self) -> float:
        """Frames per second at which the source plays at its natural speed."""

    def __iter__(self) -> Iterator[Frame]: ...


def open_source(spec: str | Path, unreadable: Unreadable | None = None) -> FrameSource:
    """Open a source and check that it holds something to play.

    Args:
        spec: an image file, a folder (its images in natural order of their names, subfolders left
            out), a video file, or `street[:SEED][:WIDTHxHEIGHT]` for an endless procedural street.
            The text `street` is never a path: write `./street` for a file or folder of that name.
        unreadable: what is called with each picture of a folder that cannot be read, which is then
            left out; None for an error.

    Raises:
        ImageError: nothing usable at `spec`; the text tells what is accepted.
    """
    if isinstance(spec, str) and is_street(spec):
        return _parse_street(spec)
    path = expanded(spec)
    try:
        # An empty text would be the working folder.
        found = spec != "" and path.exists()
        if found and path.is_dir():
            return _open_folder(path, unreadable)
    except OSError as err:
        raise ImageError(f"cannot read {str(spec)!r}: {err.strerror}; check the path") from err
    if not found:
        raise ImageError(f"expected {ACCEPTED}, but there is no file or folder {str(spec)!r}")
    if not path.is_file():
        raise ImageError(f"expected {ACCEPTED}, got {str(spec)!r}, which is a device or a pipe")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoSource(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource([path], fps=IMAGE_FPS)
    raise ImageError(
        f"expected {ACCEPTED}, got a file of unknown type {str(spec)!r}; known are the endings "
        f"{' '.join(IMAGE_SUFFIXES)} for images and {' '.join(VIDEO_SUFFIXES)} "
        "for videos"
    )


def is_street(spec: str) -> bool:
    """Whether a text names a procedural street; it is then no path."""
    return spec == "street" or spec.startswith("street:")


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as a viewer shows it.

    Grey and 16-bit pictures become 8-bit colour, transparency is left out, and an EXIF orientation
    is applied.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous.

    Raises:
        ImageError: the file cannot be read, is no picture, is cut off or has over 268 megapixels.
    """
    try:
        data = path.read_bytes()
        bgr = decode_picture(data, flags=cv2.IMREAD_COLOR, max_pixels=MAX_PIXELS)
    except OSError as err:
        raise ImageError(f"cannot read {path}: {err.strerror}; check the file") from err
    except ImageError as err:
        raise ImageError(f"{path}: {err}", reason=err.reason) from err
    return _bgr_to_rgb(bgr)


class ImageSource:
    """Image files in the given order.

    Args:
        paths: at least one file; each is opened when its turn comes.
        fps: frames per second.
        unreadable: see `open_source`.
    """

    def __init__(
        self, paths: Sequence[Path], *, fps: float, unreadable: Unreadable | None = None
    ) -> None:
        self._paths, self._unreadable = tuple(paths), unreadable
        self.length: int | None = len(self._paths)
        self.fps = fps

    def __iter__(self) -> Iterator[Frame]:
        for path in self._paths:
            try:
                image = read_image(path)
            except ImageError as err:
                if self._unreadable is None:
                    raise
                self._unreadable(err)
                continue
            yield Frame(path.stem, image)


class VideoSource:
    """The frames of a video file, decoded one by one.

    Raises:
        ImageError: the file is no video that OpenCV can decode.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as video:
            if not video.grab():
                raise self._broken("no frame in it can be decoded")
            announced = video.get(cv2.CAP_PROP_FRAME_COUNT)
            fps = video.get(cv2.CAP_PROP_FPS)
            # Streams without an index do not tell their length: run through them once.
            length = int(announced) if announced >= 1 else 1 + sum(1 for _ in iter(video.grab, 0))
        self.length: int | None = length
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else VIDEO_FPS

    def __iter__(self) -> Iterator[Frame]:
        count = 0
        with self._opened() as video:
            while True:
                decoded, bgr = video.read()
                if not decoded:
                    break
                yield Frame(f"{self._path.stem}_{count:05d}", _bgr_to_rgb(bgr))
                count += 1
        if count == 0:
            raise self._broken("no frame in it can be decoded")
        if self.length is not None and count < 0.9 * self.length:
            _log.warning(
                "%s ended after %d of about %d announced frames; it may be cut off",
                self._path, count, self.length,
            )  # fmt: skip

    @contextlib.contextmanager
    def _opened(self) -> Iterator[cv2.VideoCapture]:
        # FFmpeg takes what stands before a colon in a relative path for a protocol.
        video = cv2.VideoCapture(str(self._path.absolute()))
        try:
            if not video.isOpened():
                raise self._broken("OpenCV cannot open it")
            yield video
        finally:
            video.release()

    def _broken(self, what: str) -> ImageError:
        return ImageError(
            f"expected a video file, got {self._path}: {what}; "
            "check the file, or convert it to MP4 (H.264)"
        )


class StreetSource:
    """An endless drive along a procedural street.

    Args:
        seed: which street.
        size: (height, width).
    """

    length: int | None = None
    fps = STREET_FPS

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        self._seed = seed
        self._size = size

    def __iter__(self) -> Iterator[Frame]:
        scene = StreetScene(self._seed)
        height, width = self._size
        index = 0
        while True:
            view = scene.render(index / self.fps, height=height, width=width)
            yield Frame(f"street_{self._seed}_{index:05d}", view.image)
            index += 1


def _parse_street(spec: str) -> StreetSource:
    match = _STREET.fullmatch(spec)
    if match is None:
        raise ImageError(
            f"expected street[:SEED][:WIDTHxHEIGHT] such as street:7:1280x640, got {spec!r}"
        )
    seed = int(match["seed"] or STREET_SEED)
    height, width = int(match["height"] or STREET_SIZE[0]), int(match["width"] or STREET_SIZE[1])
    if height not in _SIDES or width not in _SIDES:
        raise ImageError(
            f"expected a street of {_SIDES[0]} .. {_SIDES[-1]} pixels on each side, got {spec!r}"
        )
    return StreetSource(seed, (height, width))


def _open_folder(folder: Path, unreadable: Unreadable | None) -> ImageSource:
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and (path.is_file() or not path.exists())  # links that lead nowhere are told of
    ]
    if not paths:
        raise ImageError(
            f"expected a folder of images ({' '.join(IMAGE_SUFFIXES)}), "
            f"found none in {folder}; subfolders are not searched"
        )
    ordered = sorted(paths, key=natural_order)
    return ImageSource(ordered, fps=FOLDER_FPS, unreadable=unreadable)


def natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts frame_2 before frame_10."""
    parts = re.split(r"([0-9]+)", path.name.lower())
    return [(int(part or 0), "") if i % 2 else (0, part) for i, part in enumerate(parts)], path.name


def _bgr_to_rgb(bgr: Any) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
