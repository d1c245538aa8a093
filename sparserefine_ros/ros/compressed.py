# SPDX-License-Identifier: Apache-2.0
"""Arrays to compressed image messages, named as image_transport names them.

Shape legend: H, W picture.
"""

from __future__ import annotations

import array
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

_JPEG_QUALITY: Final = 90
# On label maps twice as small as the default strategy in the same time; higher levels gain little.
_PNG_LEVEL: Final = 1
_PNG_STRATEGY: Final = cv2.IMWRITE_PNG_STRATEGY_RLE


def picture_to_jpeg(picture: NDArray[np.uint8], header: Header) -> CompressedImage:
    """A picture, uint8 [H, W, 3] RGB, as JPEG; `header` is used as it is, not copied."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
    return _message("rgb8; jpeg compressed bgr8", jpeg, header)


def map_to_png(pixels: NDArray[np.uint8], header: Header) -> CompressedImage:
    """A map, uint8 [H, W], as PNG without loss; `header` is used as it is, not copied."""
    _, png = cv2.imencode(
        ".png",
        pixels,
        (cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL, cv2.IMWRITE_PNG_STRATEGY, _PNG_STRATEGY),
    )
    return _message("mono8; png compressed mono8", png, header)


def _message(name: str, data: NDArray[np.uint8], header: Header) -> CompressedImage:
    message = CompressedImage(header=header, format=name)
    message.data = array.array("B", data.tobytes())
    return message
