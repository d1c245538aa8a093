# SPDX-License-Identifier: Apache-2.0
"""How the engine of the dense model is chosen and made."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparserefine_ros.errors import ConfigurationError

PRECISIONS: Final = ("model", "fp16", "bf16")


@dataclass(frozen=True)
class Progress:
    """How far work is that lasts longer than people like to wait in silence.

    Attributes:
        doing: what is being done, in words.
        share: how much of it is done, 0 .. 1.
    """

    doing: str
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.doing}, {self.share:.0%}" if self.share else self.doing


# Gets the progress; what it raises ends the work.
Report = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """The `Report` of callers who do not listen."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is made from the ONNX model.

    Attributes:
        precision: "model" keeps the number types of the ONNX file, quantised ones included; "fp16"
            and "bf16" compute in half precision where the engine can.
        cache: folder of built engines; None for `$XDG_CACHE_HOME/sparserefine_ros/engines`.
        build: whether an engine that is not in the cache is built; otherwise that is an error.
        picture_sizes: (H, W) of the camera's pictures: one size, or the smallest, the usual and the
            largest. Engines with fixed buffers need it where the bundle leaves the size open.
        max_batch: pictures that the dense model takes at once, at most.
    """

    precision: str = "model"
    cache: Path | None = None
    build: bool = True
    picture_sizes: tuple[tuple[int, int], ...] = ()
    max_batch: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigurationError: no picture at once."""
        if self.max_batch < 1:
            raise ConfigurationError(f"expected max_batch of 1 or more, got {self.max_batch}")


DEFAULT_ENGINE: Final = EngineOptions()


@dataclass(frozen=True)
class DenseOptions:
    """Which engine runs the dense model, and where.

    Attributes:
        backend: name of the engine.
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads of the engine, at least one.
        engine: how it is made.
        on_device: whether its results may stay on a GPU, for stages that run there.
    """

    backend: str
    device: str
    threads: int
    engine: EngineOptions = DEFAULT_ENGINE
    on_device: bool = False


def parse_picture_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """`WIDTHxHEIGHT`, or three of them with commas between, to (H, W) each; empty for none.

    Raises:
        ConfigurationError: not of that form, or the three do not grow.
    """
    if not text:
        return ()
    matches = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part.strip()) for part in text.split(",")]
    sizes = tuple((int(match[2]), int(match[1])) for match in matches if match)
    if len(sizes) != len(matches) or len(sizes) not in (1, 3):
        raise ConfigurationError(
            "expected a picture size such as 1920x1080, or the smallest, usual and largest such as "
            f"640x480,1920x1080,3840x2160, got {text!r}"
        )
    sides = list(zip(*sizes, strict=True))
    if any(list(side) != sorted(side) for side in sides):
        raise ConfigurationError(
            f"expected the smallest, the usual and the largest picture size in this order, "
            f"got {text!r}"
        )
    return sizes
