# SPDX-License-Identifier: Apache-2.0
"""Random image messages, and the check that one is refused."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Final

import numpy as np
import pytest
from sensor_msgs.msg import Image

from sparserefine_ros.encodings import ENCODINGS
from sparserefine_ros.errors import ImageError
from sparserefine_ros.messages import REASONS

MAX_PIXELS: Final = 100_000


def make_message(
    encoding: str,
    height: int,
    width: int,
    row_bytes: int,
    *,
    padding: int = 0,
    big_endian: bool = False,
    rows: int | None = None,
    seed: int = 0,
) -> Image:
    rows = height if rows is None else rows
    step = row_bytes + padding
    data = np.random.default_rng(seed).integers(0, 256, rows * step, np.uint8).tobytes()
    return Image(
        encoding=encoding,
        height=height,
        width=width,
        step=step,
        is_bigendian=big_endian,
        data=array.array("B", data),
    )


def random_message(encoding: str, padding: int) -> Image:
    """6 rows of 8 pixels."""
    layout = ENCODINGS[encoding]
    row_bytes = 8 * layout.pixel_bytes
    return make_message(encoding, 6, 8, row_bytes, padding=padding, rows=layout.rows(6))


def refused(call: Callable[[], object], reason: str, text: str | None = None) -> None:
    """Check that `call` raises ImageError with this reason and text."""
    with pytest.raises(ImageError, match=text) as caught:
        call()
    assert caught.value.reason == reason
    assert reason in REASONS
