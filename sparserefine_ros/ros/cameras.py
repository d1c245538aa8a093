# SPDX-License-Identifier: Apache-2.0
"""The cameras of a node: their topics, and the names that keep their outputs apart."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SINGLE_TOPIC: Final = "image"

# What an unset list of texts looks like: ROS cannot tell the type of an empty one.
NOT_SET: Final = ("",)

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TOPIC: Final = re.compile(r"(?:/|~/)?[A-Za-z_][A-Za-z0-9_]*(?:/[A-Za-z_][A-Za-z0-9_]*)*")


@dataclass(frozen=True)
class Camera:
    """One camera.

    Attributes:
        name: of its outputs' namespace; empty for the only camera of a node on `image`.
        topic: of its pictures, not yet remapped.
    """

    name: str
    topic: str

    @property
    def prefix(self) -> str:
        """What comes before the name of an output."""
        return f"~/{self.name}/" if self.name else "~/"


def choose_cameras(topics: Sequence[str], names: Sequence[str]) -> tuple[Camera, ...]:
    """The cameras that the parameters image_topics and camera_names ask for.

    Args:
        topics: NOT_SET or empty for the single camera on `image`.
        names: as many as topics; NOT_SET or empty to name each camera after its topic.
    """
    topics, names = _given(topics), _given(names)
    if not topics:
        return (Camera("", SINGLE_TOPIC),)
    names = names or tuple(name_of_topic(topic) for topic in topics)
    return tuple(Camera(name, topic) for name, topic in zip(names, topics, strict=True))


def name_of_topic(topic: str) -> str:
    """The camera's name in a topic: `front` in /robot/front/image_raw and /front/image/compressed.

    That is the part before the last one, once a trailing `compressed` is taken off; the whole of a
    topic with one part.
    """
    parts = [part for part in topic.split("/") if part not in ("", "~")]
    if len(parts) > 1 and parts[-1] == "compressed":
        parts.pop()
    return parts[-2] if len(parts) > 1 else "".join(parts)


def find_list_mistakes(topics: Sequence[str], names: Sequence[str]) -> list[str]:
    """What is wrong with image_topics or camera_names, whatever the other one is."""
    topics, names = _given(topics), _given(names)
    return [
        *(
            f"image_topics: expected topic names such as /front/image_raw, got {topic!r}"
            for topic in topics
            if not _TOPIC.fullmatch(topic)
        ),
        *(
            f"image_topics: expected each topic once, got {topic} twice or more"
            for topic in _repeated(topics)
        ),
        *(
            "camera_names: expected letters, digits and underscores after a letter, "
            f"such as front_left, got {name!r}"
            for name in names
            if not _NAME.fullmatch(name)
        ),
        *(
            f"camera_names: expected each name once, got {name!r} twice or more"
            for name in _repeated(names)
        ),
    ]


def find_pairing_mistakes(topics: Sequence[str], names: Sequence[str]) -> list[str]:
    """What is wrong with image_topics and camera_names together, each being right by itself."""
    topics, names = _given(topics), _given(names)
    if names and len(names) != len(topics):
        return [
            f"camera_names: expected one name for each of the {len(topics)} image_topics, "
            f"got {len(names)}"
        ]
    return [
        f"image_topics: expected topics that give each camera a name of its own, got {name!r} "
        "twice or more; set camera_names to tell them apart"
        for name in _repeated([camera.name for camera in choose_cameras(topics, names)])
    ]


def _given(texts: Sequence[str]) -> tuple[str, ...]:
    return () if tuple(texts) == NOT_SET else tuple(texts)


def _repeated(texts: Sequence[str]) -> list[str]:
    return [text for text, times in collections.Counter(texts).items() if times > 1]
