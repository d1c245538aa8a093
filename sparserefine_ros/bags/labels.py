# SPDX-License-Identifier: Apache-2.0
"""The labels that belong to the pictures of a bag: from another topic, or from a folder.

Shape legend: H, W picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from sparserefine_ros.bags.frames import BagFrame, header_of, message_to_labels, read_message
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.bags.storage import Recorded
from sparserefine_ros.data.label_files import read_label_file
from sparserefine_ros.errors import BagError, ImageError
from sparserefine_ros.sources import natural_order

# Labels recorded longer before or after their picture are not found.
WINDOW_NS: Final = 10 * 10**9
_STAMP: Final = re.compile(r"(?P<seconds>\d+)[._](?P<nanoseconds>\d{9})|(?P<whole>[1-9]\d{9,})")


class Labels(Protocol):
    """Labels of frames; ask for frames in their order.

    Attributes:
        unusable: label images that were none, in number.
    """

    unusable: int

    def __call__(self, frame: BagFrame) -> NDArray[Any] | None:
        """Label image of a frame as it is stored, [H, W]; None where there is none."""

    def check(self, missing: int, damage: Sequence[str], *, part: bool = False) -> None:
        """Make sure, at the end, that each frame had its own.

        A part of a bag may have none: labels of every tenth picture all fall into one of two parts.

        Args:
            missing: messages of pictures that could not be read.
            damage: what else of the bag could not.
            part: whether the frames were a part of the bag's only.

        Raises:
            BagError: no frame of a whole bag had labels, or some may have had those of others.
        """


class NoLabels:
    """For bags without labels."""

    unusable = 0

    def __call__(self, frame: BagFrame) -> None:
        """None."""

    def check(self, missing: int, damage: Sequence[str], *, part: bool = False) -> None:
        """Nothing was asked for."""


class TopicLabels:
    """Labels from a topic: those with the stamp of the picture, recorded within ten seconds.

    Args:
        bag: open for as long as this is asked.
        topic: of sensor_msgs/Image in mono8 or 8UC1, or CompressedImage in PNG.
    """

    def __init__(self, bag: Bag, topic: str) -> None:
        self.unusable = self._found = 0
        self._topic = topic
        self._source: Iterator[Recorded] = iter(bag.messages([topic]))
        # Recording time and pixels, by stamp, of labels whose picture has not come.
        self._waiting: dict[int, tuple[int, NDArray[Any]]] = {}
        self._newest_ns = -(2**63)

    def __call__(self, frame: BagFrame) -> NDArray[Any] | None:
        """Label image of a frame, uint8 [H, W]; None where there is none."""
        stamp_ns = frame.header.stamp_ns
        while stamp_ns not in self._waiting and self._newest_ns <= frame.log_ns + WINDOW_NS:
            recorded = next(self._source, None)
            if recorded is None:
                self._newest_ns = 2**63
                break
            self._newest_ns = recorded.log_ns
            self._keep(recorded)
        oldest_ns = frame.log_ns - WINDOW_NS
        for stamp in [at for at, (log_ns, _) in self._waiting.items() if log_ns < oldest_ns]:
            del self._waiting[stamp]
        found = self._waiting.pop(stamp_ns, None)
        self._found += found is not None
        return found and found[1]

    def check(self, missing: int, damage: Sequence[str], *, part: bool = False) -> None:
        """See `Labels.check`."""
        if not self._found and not part:
            raise BagError(
                f"expected labels on {self._topic} with the stamps of the pictures, recorded "
                f"within {WINDOW_NS // 10**9} s of them, found none; {self.unusable} messages "
                "there are no labels or have no stamp"
            )

    def _keep(self, recorded: Recorded) -> None:
        try:
            message = read_message(recorded)
            labels = message_to_labels(message, recorded.type)
        except ImageError:
            self.unusable += 1
            return
        stamp_ns = header_of(message).stamp_ns
        if stamp_ns == 0:  # it was never set, and would suit every picture without one
            self.unusable += 1
            return
        self._waiting[stamp_ns] = (recorded.log_ns, labels)


class FolderLabels:
    """Labels from PNG files: one for each message of the image topic in natural order of the names.

    Where every name is a stamp (SECONDS.NANOSECONDS with nine digits, or nanoseconds), the stamp
    decides instead, and pictures may lack labels.

    Args:
        folder: of PNG files that hold a class id per pixel.
        messages: number of messages of the image topic.
        damage: what of the bag cannot be read.

    Raises:
        BagError: no such file, or, where the order decides, another number of them than of
            messages, or a damaged bag.
    """

    unusable = 0

    def __init__(self, folder: Path, messages: int, *, damage: Sequence[str] = ()) -> None:
        self._folder, self._found = folder, 0
        seen = (path for path in folder.glob("*.png") if not path.name.startswith("."))
        files = sorted(seen, key=natural_order)
        if not files:
            raise BagError(f"expected a folder of label images (*.png), found none in {folder}")
        stamps = [_stamp_ns(path.stem) for path in files]
        self._by_stamp = None not in stamps
        if self._by_stamp:
            self._files: dict[int | None, Path] = dict(zip(stamps, files, strict=True))
        elif len(files) != messages:
            raise BagError(
                f"expected {messages} label images in {folder}, one for each message of the image "
                f"topic, got {len(files)}; name them by the stamp of their picture, as in "
                "12.500000000.png, if some pictures have none"
            )
        else:
            self._refuse_holes(0, damage)
            self._files = dict(enumerate(files))

    def __call__(self, frame: BagFrame) -> NDArray[Any] | None:
        """Label image of a frame, [H, W]; None where there is none.

        Raises:
            DatasetError: the file cannot be read.
        """
        path = self._files.get(frame.header.stamp_ns if self._by_stamp else frame.index)
        self._found += path is not None
        return None if path is None else read_label_file(path)

    def check(self, missing: int, damage: Sequence[str], *, part: bool = False) -> None:
        """See `Labels.check`."""
        if not self._found and not part:
            raise BagError(
                f"expected label images in {self._folder} named by the stamps of the pictures, "
                "none of the names is one; see docs/bags.md"
            )
        if not self._by_stamp:
            self._refuse_holes(missing, damage)

    def _refuse_holes(self, missing: int, damage: Sequence[str]) -> None:
        """Behind a hole every picture would get the labels of another."""
        if missing or damage:
            raise BagError(
                f"expected a whole bag for the label images in {self._folder}, which go by their "
                f"order, got {'; '.join(damage) or f'{missing} messages too few'}; name them by "
                "the stamp of their picture, as in 12.500000000.png"
            )


def _stamp_ns(name: str) -> int | None:
    match = _STAMP.fullmatch(name)
    if match is None:
        return None
    if match["whole"]:
        return int(match["whole"])
    return int(match["seconds"]) * 10**9 + int(match["nanoseconds"])
