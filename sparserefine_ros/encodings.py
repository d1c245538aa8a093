# SPDX-License-Identifier: Apache-2.0
"""The pixel encodings of sensor_msgs/Image and how each becomes RGB.

Shape legend: H, W picture. All names are those of sensor_msgs/image_encodings.hpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoding:
    """Memory layout and meaning of one encoding.

    Attributes:
        bits: of one channel, 8 or 16.
        channels: values per pixel as they lie in a row.
        to_rgb: OpenCV colour conversion, or None when the channels are R, G, B already.
        known_to_cv_bridge: whether cv_bridge converts it to rgb8. It refuses the encodings that
            only name a type (8UC3), for which we assume OpenCV's channel order, BGR.
        even_sides: whether chroma is shared by neighbours, so that sides must be even:
            "", "width" or "both".
        chroma_below: whether H / 2 rows of chroma follow the H rows of luma.
        smallest_side: fewest rows and columns from which colours can be interpolated.
    """

    bits: int
    channels: int
    to_rgb: int | None
    known_to_cv_bridge: bool = True
    even_sides: str = ""
    chroma_below: bool = False
    smallest_side: int = 1

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel within a row."""
        return self.bits // 8 * self.channels

    def rows(self, height: int) -> int:
        """Rows of memory for `height` rows of picture."""
        return height * 3 // 2 if self.chroma_below else height


def _interleaved(bits: int) -> dict[str, Encoding]:
    return {
        f"mono{bits}": Encoding(bits, 1, cv2.COLOR_GRAY2RGB),
        f"rgb{bits}": Encoding(bits, 3, None),
        f"bgr{bits}": Encoding(bits, 3, cv2.COLOR_BGR2RGB),
        f"rgba{bits}": Encoding(bits, 4, cv2.COLOR_RGBA2RGB),
        f"bgra{bits}": Encoding(bits, 4, cv2.COLOR_BGRA2RGB),
        f"{bits}UC1": Encoding(bits, 1, cv2.COLOR_GRAY2RGB, known_to_cv_bridge=False),
        f"{bits}UC3": Encoding(bits, 3, cv2.COLOR_BGR2RGB, known_to_cv_bridge=False),
        f"{bits}UC4": Encoding(bits, 4, cv2.COLOR_BGRA2RGB, known_to_cv_bridge=False),
    }


def _bayer(bits: int) -> dict[str, Encoding]:
    # ROS names the pattern by its first four pixels in reading order; OpenCV by the four that
    # start at the second row and column. So ROS rggb is OpenCV BG.
    codes = {
        "rggb": cv2.COLOR_BayerBG2RGB,
        "bggr": cv2.COLOR_BayerRG2RGB,
        "gbrg": cv2.COLOR_BayerGR2RGB,
        "grbg": cv2.COLOR_BayerGB2RGB,
    }
    return {
        f"bayer_{pattern}{bits}": Encoding(bits, 1, code, smallest_side=3)
        for pattern, code in codes.items()
    }


def _packed_yuv(to_rgb: int, *, known_to_cv_bridge: bool) -> Encoding:
    return Encoding(8, 2, to_rgb, known_to_cv_bridge=known_to_cv_bridge, even_sides="width")


ENCODINGS: Final[Mapping[str, Encoding]] = MappingProxyType(
    {
        **_interleaved(8),
        **_interleaved(16),
        **_bayer(8),
        **_bayer(16),
        "yuv422": _packed_yuv(cv2.COLOR_YUV2RGB_UYVY, known_to_cv_bridge=True),
        "uyvy": _packed_yuv(cv2.COLOR_YUV2RGB_UYVY, known_to_cv_bridge=False),
        "yuv422_yuy2": _packed_yuv(cv2.COLOR_YUV2RGB_YUY2, known_to_cv_bridge=True),
        "yuyv": _packed_yuv(cv2.COLOR_YUV2RGB_YUY2, known_to_cv_bridge=False),
        "nv21": Encoding(
            8,
            1,
            cv2.COLOR_YUV2RGB_NV21,
            known_to_cv_bridge=False,
            even_sides="both",
            chroma_below=True,
        ),
    }
)


def pixels_to_rgb(
    pixels: NDArray[np.uint8] | NDArray[np.uint16], encoding: Encoding
) -> NDArray[np.uint8]:
    """Convert pixels to RGB.

    16-bit values v become round(v * 255 / 65535) after the colour conversion, as in cv_bridge, so
    that white stays white; a shift by 8 bits would darken about half of the values by one.

    Args:
        pixels: [H, W] or [H, W, channels] in the layout of `encoding`, native byte order; rows
            may be padded.
        encoding: of the pixels.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous; `pixels` itself when it is that already.
    """
    rgb = pixels if encoding.to_rgb is None else cv2.cvtColor(pixels, encoding.to_rgb)
    if encoding.bits == 16:
        rgb = cv2.convertScaleAbs(rgb, alpha=255 / 65535)
    return np.ascontiguousarray(rgb, np.uint8)
