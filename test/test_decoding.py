# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import smooth_picture

from sparserefine_ros.decoding import decode_picture
from sparserefine_ros.errors import ImageError


def png() -> bytes:
    done, data = cv2.imencode(".png", smooth_picture(20, 30))
    assert done
    return data.tobytes()


def test_every_chunk_is_within_the_file() -> None:
    """OpenCV takes as much memory as a chunk says it has, before it looks for it."""
    whole = png()
    assert decode_picture(whole, flags=cv2.IMREAD_COLOR, max_pixels=600).shape == (20, 30, 3)
    assert whole[37:41] == b"IDAT"
    for top in (0x01, 0x7F, 0xFF):
        damaged = bytearray(whole)
        damaged[33] = top
        with pytest.raises(ImageError, match="cut off or damaged") as told:
            decode_picture(bytes(damaged), flags=cv2.IMREAD_COLOR, max_pixels=600)
        assert told.value.reason == "decode"


@pytest.mark.parametrize("left", [32, 33, 60, -1, -12])
def test_a_png_without_its_end(left: int) -> None:
    with pytest.raises(ImageError, match="PNG"):
        decode_picture(png()[:left], flags=cv2.IMREAD_COLOR, max_pixels=600)


def test_what_follows_the_end_is_passed_over() -> None:
    pixels = decode_picture(png() + b"more", flags=cv2.IMREAD_COLOR, max_pixels=600)
    np.testing.assert_array_equal(pixels, smooth_picture(20, 30))
