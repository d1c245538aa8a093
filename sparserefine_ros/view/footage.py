# SPDX-License-Identifier: Apache-2.0
"""Pictures to look at, of files, a street or a bag, numbered and stamped alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bags.frames import BagFrames
from sparserefine_ros.bags.reader import Bag, is_bag
from sparserefine_ros.bags.topics import choose_image_topic
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.subset import Subset
from sparserefine_ros.files import expanded
from sparserefine_ros.run import frame_limit
from sparserefine_ros.sources import FOLDER_FPS, is_street, open_source


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture.

    Attributes:
        index: its place in the source; of a bag, among the messages of its topic.
        name: file name, or its stamp in seconds.
        image: uint8 [H, W, 3], RGB.
        stamp_ns: when it was taken, nanoseconds; None where the source does not tell.
    """

    index: int
    name: str
    image: NDArray[np.uint8]
    stamp_ns: int | None = None


@dataclass(frozen=True, eq=False)
class Footage:
    """The pictures of a source.

    Attributes:
        shots: in order; iterate once.
        total: how many there will be, as far as the source tells.
        fps: at which they are played.
        remarks: what could not be used so far, in words.
    """

    shots: Iterator[Shot]
    total: int
    fps: float
    remarks: Callable[[], Sequence[str]]


@contextmanager
def open_footage(
    source: str, *, image_topic: str | None = None, limit: int = 0
) -> Iterator[Footage]:
    """Open an image, a folder, a video, a street or a bag for as long as the block lasts.

    Args:
        source: see `sparserefine_ros.sources.open_source`; or a bag's folder or storage file.
        image_topic: of a bag; None for its only one.
        limit: pictures at most, of a bag messages; 0 for all (30 of an endless source).

    Raises:
        ImageError: nothing usable at `source`, or a picture in it cannot be read.
        BagError: the bag cannot be read, or has no such topic.
        BackendError: a bag, and the library rosbags is not installed.
        ConfigurationError: a negative limit, or a topic of what is no bag.
    """
    if not is_street(source) and is_bag(expanded(source)):
        with Bag(expanded(source)) as bag:
            topic = choose_image_topic(bag, image_topic)
            yield _of_bag(bag, topic, frame_limit(limit, bag.announced.get(topic, 0)))
        return
    if image_topic is not None:
        raise ConfigurationError(
            f"expected a bag to take the topic {image_topic} from, got {source}; "
            "leave --image-topic out"
        )
    frames = open_source(source)
    limit = frame_limit(limit, frames.length)
    total = min(filter(None, (frames.length, limit)))
    taken = enumerate(islice(frames, limit or None))
    shots = (Shot(index, frame.name, frame.image) for index, frame in taken)
    yield Footage(shots, total, frames.fps, tuple)


def _of_bag(bag: Bag, topic: str, limit: int) -> Footage:
    frames = BagFrames(bag, topic, Subset(limit))
    counts = frames.counts

    def remarks() -> Sequence[str]:
        rejected = counts.rejected.total()
        said = f"{rejected} messages cannot be used, such as {counts.first_rejection}"
        return [*bag.damage, *([said] if rejected else [])]

    shots = (
        Shot(frame.index, frame.header.text, frame.image, frame.header.stamp_ns) for frame in frames
    )
    return Footage(shots, counts.expected, FOLDER_FPS, remarks)
