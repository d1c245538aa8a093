# SPDX-License-Identifier: Apache-2.0
"""The pictures of a bag in order, decoded, with everything that was wrong counted.

Shape legend: H, W picture.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bags.library import IMAGE, typestore
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.bags.storage import Recorded
from sparserefine_ros.data.label_files import PNG_START, decode_labels
from sparserefine_ros.errors import ImageError
from sparserefine_ros.evaluation.subset import ALL_FRAMES, Subset
from sparserefine_ros.image import MAX_PIXELS, check_image
from sparserefine_ros.messages import (
    check_message,
    compressed_to_rgb,
    image_to_pixels,
    image_to_rgb,
)

UNREADABLE: Final = "message"  # reason of a rejection: no image message at all
_LABEL_ENCODINGS: Final = ("mono8", "8UC1")


@dataclass(frozen=True)
class Header:
    """Of a message.

    Attributes:
        stamp_ns: when the picture was taken, nanoseconds.
        frame_id: its coordinate frame.
    """

    stamp_ns: int
    frame_id: str

    @property
    def text(self) -> str:
        """The stamp in seconds, exact; it names the frame in reports."""
        return f"{self.stamp_ns // 10**9}.{self.stamp_ns % 10**9:09d}"


@dataclass(frozen=True, eq=False)
class BagFrame:
    """A picture of a bag.

    Attributes:
        index: place among the messages of its topic.
        header: of its message.
        log_ns: when the message was recorded, nanoseconds.
        image: uint8 [H, W, 3], RGB.
    """

    index: int
    header: Header
    log_ns: int
    image: NDArray[np.uint8]


@dataclass
class BagCounts:
    """What was found on an image topic.

    Attributes:
        announced: messages the bag says it holds.
        limit: the first messages that are wanted; 0 for all.
        messages: messages read.
        frames: pictures that could be used.
        rejected: messages that could not, by reason, see `sparserefine_ros.messages.REASONS`.
        first_rejection: text of the first one.
        encodings: usable pictures by encoding, or by format when compressed.
        sizes: usable pictures by WIDTHxHEIGHT.
        stamps_back: pictures stamped earlier than the one before.
        recorded_back: messages recorded earlier than the one before.
    """

    announced: int
    limit: int = 0
    messages: int = 0
    frames: int = 0
    rejected: collections.Counter[str] = field(default_factory=collections.Counter)
    first_rejection: str = ""
    encodings: collections.Counter[str] = field(default_factory=collections.Counter)
    sizes: collections.Counter[str] = field(default_factory=collections.Counter)
    stamps_back: int = 0
    recorded_back: int = 0

    @property
    def expected(self) -> int:
        """Messages to be read."""
        return min(self.announced, self.limit or self.announced)

    @property
    def missing(self) -> int:
        """Messages that were to be read, but are not there."""
        return max(0, self.expected - self.messages)

    def to_json(self) -> Mapping[str, Any]:
        """Plain values, in a fixed order."""
        return {
            "announced": self.announced,
            "messages": self.messages,
            "missing": self.missing,
            "frames": self.frames,
            "rejected": dict(sorted(self.rejected.items())),
            "first_rejection": self.first_rejection,
            "encodings": dict(sorted(self.encodings.items())),
            "sizes": dict(sorted(self.sizes.items())),
            "stamps_back": self.stamps_back,
            "recorded_back": self.recorded_back,
        }


class BagFrames:
    """The pictures of an image topic; iterate once.

    Args:
        bag: open for as long as this is read.
        topic: of sensor_msgs/Image or CompressedImage.
        subset: which messages; others are counted, but not decoded.

    Attributes:
        counts: of what was read so far.
    """

    def __init__(self, bag: Bag, topic: str, subset: Subset = ALL_FRAMES) -> None:
        self.counts = BagCounts(bag.announced.get(topic, 0), subset.limit)
        self._bag = bag
        self._topic = topic
        self._subset = subset

    def __iter__(self) -> Iterator[BagFrame]:
        subset, counts = self._subset, self.counts
        last_log_ns: int | None = None
        last_stamp_ns: int | None = None
        for index, recorded in enumerate(self._bag.messages([self._topic])):
            if subset.limit and index >= subset.limit:
                return
            counts.messages += 1
            counts.recorded_back += last_log_ns is not None and recorded.log_ns < last_log_ns
            last_log_ns = recorded.log_ns
            if index % subset.shards != subset.shard - 1:
                continue
            try:
                frame = self._decode(index, recorded)
            except ImageError as err:
                counts.rejected[err.reason] += 1
                counts.first_rejection = counts.first_rejection or f"message {index}: {err}"
                continue
            stamp_ns = frame.header.stamp_ns
            counts.stamps_back += last_stamp_ns is not None and stamp_ns < last_stamp_ns
            last_stamp_ns = stamp_ns
            yield frame

    def _decode(self, index: int, recorded: Recorded) -> BagFrame:
        message = read_message(recorded)
        if recorded.type == IMAGE:
            image = image_to_rgb(message, max_pixels=MAX_PIXELS)
        else:
            image = compressed_to_rgb(message, max_pixels=MAX_PIXELS)
        check_image(image)  # of few pixels, one side may still be too long for the pipeline
        counts = self.counts
        counts.frames += 1
        counts.encodings[message.encoding if recorded.type == IMAGE else message.format] += 1
        counts.sizes[f"{image.shape[1]}x{image.shape[0]}"] += 1
        return BagFrame(index, header_of(message), recorded.log_ns, image)


def read_message(recorded: Recorded) -> Any:
    """The message's fields.

    Raises:
        ImageError: the bytes are no such message.
    """
    try:
        return typestore().deserialize_cdr(recorded.data, recorded.type)
    except Exception as err:  # of many kinds, on broken bytes
        raise ImageError(
            f"expected a serialised {recorded.type}, got {len(recorded.data)} bytes that are none "
            f"({type(err).__name__}); check the recorder",
            reason=UNREADABLE,
        ) from err


def header_of(message: Any) -> Header:
    """Stamp and coordinate frame of a message with a header."""
    stamp = message.header.stamp
    return Header(stamp.sec * 10**9 + stamp.nanosec, message.header.frame_id)


def message_to_labels(message: Any, kind: str) -> NDArray[np.uint8]:
    """Label image, uint8 [H, W], of a mono8 or 8UC1 Image or of a CompressedImage in PNG.

    Raises:
        ImageError: it is of another kind.
    """
    if kind == IMAGE:
        encoding = check_message(message, MAX_PIXELS)
        if message.encoding not in _LABEL_ENCODINGS:
            raise ImageError(
                f"expected labels in {' or '.join(_LABEL_ENCODINGS)}, a class id per pixel, got "
                f"{message.encoding}; publish them so",
                reason="encoding",
            )
        return np.ascontiguousarray(image_to_pixels(message, encoding), np.uint8)
    data = bytes(message.data)
    if data and not data.startswith(PNG_START):
        raise ImageError(
            "expected labels as PNG, which keeps every class id, got bytes that start with "
            f"{data[:8].hex(' ')} in the format {message.format!r}; publish them so",
            reason="encoding",
        )
    pixels = decode_labels(data)
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise ImageError(
            "expected labels as PNG of 8 bits or fewer, grey or with a palette, a class id per "
            f"pixel, got {pixels.dtype} {list(pixels.shape)}; publish them so",
            reason="encoding",
        )
    return np.asarray(pixels, np.uint8)
