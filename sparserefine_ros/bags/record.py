# SPDX-License-Identifier: Apache-2.0
"""A bag made from a data set, a folder of pictures, a video or a procedural street."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparserefine_ros.bags.frames import Header
from sparserefine_ros.bags.writer import write_bag
from sparserefine_ros.data.datasets import SegmentationDataset, iterate
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.sources import FrameSource

IMAGE_TOPIC: Final = "/camera/image"
LABEL_TOPIC: Final = "/camera/labels"
ENDLESS_LIMIT: Final = 30
# A stamp of 0 means "unknown" to many ROS tools.
_FIRST_STAMP_NS: Final = 10**9

# A picture uint8 [H, W, 3] RGB, and its labels uint8 [H, W] where there are any.
Picture = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class RecordOptions:
    """How a bag is written.

    Attributes:
        rate_hz: pictures per second.
        limit: pictures at most; 0 for all (30 of an endless source).
        labels: whether to write the labels of a data set.
        compressed: whether pictures are written as JPEG, and labels as PNG, in CompressedImage.
        storage: "mcap" or "sqlite3".
        compression: "none" or "zstd".
        frame_id: coordinate frame in the headers.

    Raises:
        ConfigurationError: an impossible rate or limit.
    """

    rate_hz: float = 10.0
    limit: int = 0
    labels: bool = False
    compressed: bool = False
    storage: str = "mcap"
    compression: str = "none"
    frame_id: str = "camera"

    def __post_init__(self) -> None:
        if not 0.001 <= self.rate_hz <= 1e6:  # stamps are in nanoseconds
            raise ConfigurationError(f"expected a rate of 0.001 .. 1e6 Hz, got {self.rate_hz}")
        if self.limit < 0:
            raise ConfigurationError(f"expected a limit of 0 (all) or more, got {self.limit}")


def record_dataset(dataset: SegmentationDataset, folder: Path, options: RecordOptions) -> int:
    """Write the frames of a data set, in order; returns their number.

    Raises:
        SparseRefineError: the options are impossible, a frame is broken, the bag cannot be written.
    """
    pictures = ((s.image, s.labels if options.labels else None) for s in iterate(dataset))
    return _record(pictures, folder, options, len(dataset))


def record_source(source: FrameSource, folder: Path, options: RecordOptions) -> int:
    """Write the frames of a source, in order; returns their number.

    Raises:
        SparseRefineError: the options are impossible, a frame is broken, the bag cannot be written.
    """
    if options.labels:
        raise ConfigurationError(
            "expected labels to come from a data set, got a folder, video or street; "
            "name it with --data KIND:ROOT"
        )
    limit = options.limit or (ENDLESS_LIMIT if source.length is None else 0)
    pictures = islice(((frame.image, None) for frame in source), limit or None)
    return _record(pictures, folder, options, limit or source.length)


def _record(
    pictures: Iterator[Picture], folder: Path, options: RecordOptions, total: int | None
) -> int:
    count = 0
    with write_bag(folder, storage=options.storage, compression=options.compression) as bag:
        some = islice(pictures, options.limit or None)
        for image, labels in tqdm(some, total=total, unit="frame", desc="writing"):
            stamp_ns = _FIRST_STAMP_NS + round(count * 1e9 / options.rate_hz)
            header = Header(stamp_ns, options.frame_id)
            if options.compressed:
                topic = f"{IMAGE_TOPIC}/compressed"
                bag.write_compressed(topic, header, stamp_ns, image, "jpeg")
            else:
                bag.write_image(IMAGE_TOPIC, header, stamp_ns, image, "rgb8")
            if labels is not None and options.compressed:
                topic = f"{LABEL_TOPIC}/compressed"
                bag.write_compressed(topic, header, stamp_ns, labels, "png")
            elif labels is not None:
                bag.write_image(LABEL_TOPIC, header, stamp_ns, labels, "mono8")
            count += 1
    return count
