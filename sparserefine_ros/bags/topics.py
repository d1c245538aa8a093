# SPDX-License-Identifier: Apache-2.0
"""Which topic of a bag holds the pictures, and which the labels."""

from __future__ import annotations

from typing import Final

from sparserefine_ros.bags.library import IMAGE_TYPES
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.errors import BagError

# The maps of the node are pictures as well; nobody means them by "the pictures of the bag".
_OUTPUTS: Final = ("/labels", "/entropy", "/confidence", "/refined", "/overlay")


def choose_image_topic(bag: Bag, wanted: str | None, *, label_topic: str | None = None) -> str:
    """The topic of the pictures.

    Args:
        bag: where to look.
        wanted: the topic; None for the only one that holds pictures.
        label_topic: a topic that holds labels, which is not chosen.

    Raises:
        BagError: there is no such topic, or None and not exactly one; the text lists what is there.
    """
    if wanted is not None:
        return check_image_topic(bag, wanted)
    found = [
        topic
        for topic, kind in sorted(bag.types.items())
        if kind in IMAGE_TYPES and topic != label_topic
    ]
    cameras = [topic for topic in found if not topic.removesuffix("/compressed").endswith(_OUTPUTS)]
    found = cameras or found
    if len(found) == 1:
        return found[0]
    raise BagError(
        f"expected one image topic in {bag.path}, found {len(found)}; "
        f"choose one with --image-topic; the bag holds {bag.describe_topics() or 'no topic'}"
    )


def check_image_topic(bag: Bag, topic: str) -> str:
    """The topic itself, if the bag has it and it holds pictures or label images.

    Raises:
        BagError: not so; the text lists what is there.
    """
    kind = bag.types.get(topic)
    if kind not in IMAGE_TYPES:
        what = f"of type {kind}" if kind else "missing"
        raise BagError(
            f"expected a topic {topic} of type {' or '.join(IMAGE_TYPES)} in {bag.path}, it is "
            f"{what}; the bag holds {bag.describe_topics() or 'no topic'}"
        )
    return topic
