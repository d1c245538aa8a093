# SPDX-License-Identifier: Apache-2.0
"""From an RGB picture to the low-resolution network input and to full-resolution pixel features.

Shape legend: H, W full resolution; h, w low resolution; N selected pixels.
Pictures are uint8 [H, W, 3] in RGB order, 0 .. 255.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sparserefine_ros.errors import ImageError

MAX_SIDE = 16384
MAX_PIXELS = MAX_SIDE * MAX_SIDE

ChannelOrder = Literal["RGB", "BGR"]


def check_image(image: NDArray[np.uint8]) -> None:
    """Check that `image` is a picture this package can process.

    Raises:
        ImageError: not uint8 [H, W, 3] with sides of 1 .. 16384 pixels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f"expected an RGB picture, uint8 [H, W, 3], got {image.dtype} {list(image.shape)}; "
            "convert it before calling the pipeline"
        )
    height, width = image.shape[:2]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ImageError(
            f"expected sides of 1 .. {MAX_SIDE} pixels, got {width} x {height}; crop or resize it",
            reason="empty" if height == 0 or width == 0 else "too_large",
        )


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to (height, width): pixel areas are averaged when shrinking, bilinear otherwise."""
    if image.shape[:2] == size:
        return image
    height, width = size
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)  # type: ignore[return-value]


@dataclass(frozen=True)
class Normalisation:
    """Channel order and statistics a network was trained with.

    Attributes:
        channel_order: order in which the network expects the channels.
        mean: three values on the 0-255 scale, in the network's channel order.
        std: the same for the standard deviation.
    """

    channel_order: ChannelOrder
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def tables(self) -> NDArray[np.float32]:
        """Return float32 [3, 256]: the normalised value of each byte, per network channel."""
        values = np.arange(256, dtype=np.float32)
        mean = np.asarray(self.mean, np.float32)[:, None]
        std = np.asarray(self.std, np.float32)[:, None]
        return ((values - mean) / std).astype(np.float32)

    def source_channels(self) -> tuple[int, int, int]:
        """Index of the RGB channel that feeds each network channel."""
        return (0, 1, 2) if self.channel_order == "RGB" else (2, 1, 0)


class Normaliser:
    """Applies a `Normalisation` by table look-up, exact for bytes.

    Attributes:
        channels: of an RGB picture, in the network's order.
        table: float32 [3 * 256], the value of each byte, in the network's order of channels.
    """

    def __init__(self, normalisation: Normalisation) -> None:
        self.channels = normalisation.source_channels()
        tables = normalisation.tables()
        self._tables = [np.ascontiguousarray(table) for table in tables]
        # torch looks up [N, 3] bytes in one gather from a flat table.
        self.table = torch.from_numpy(tables.reshape(-1))
        self._offsets = torch.tensor([0, 256, 512])

    def to(self, device: torch.device) -> Normaliser:
        """The same for pixels on another device."""
        moved = copy.copy(self)
        moved.table, moved._offsets = self.table.to(device), self._offsets.to(device)
        return moved

    def images_to_nchw(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Normalise B pictures of one size, each uint8 [h, w, 3] RGB, to float32 [B, 3, h, w].

        The channels are in the network's order.
        """
        planes = np.empty((len(images), 3, *images[0].shape[:2]), np.float32)
        for image, target in zip(images, planes, strict=True):
            for channel, table, plane in zip(self.channels, self._tables, target, strict=True):
                cv2.LUT(cv2.extractChannel(image, channel), table, plane)
        return planes

    def pixels_to_features(self, image: NDArray[np.uint8], pixels: torch.Tensor) -> torch.Tensor:
        """Sample and normalise full-resolution pixels.

        Args:
            image: uint8 [H, W, 3] RGB, C-contiguous.
            pixels: int64 [N], flat index row * W + column.

        Returns:
            float32 [N, 3] in the network's channel order.
        """
        # NumPy takes from read-only memory too, such as that of a message.
        rgb = torch.from_numpy(image.reshape(-1, 3).take(pixels.numpy(), axis=0))
        return self.rows_to_features(rgb)

    def rows_to_features(self, rgb: torch.Tensor) -> torch.Tensor:
        """Normalise uint8 [N, 3] RGB to float32 [N, 3] in the network's channel order."""
        if self.channels != (0, 1, 2):
            rgb = rgb.flip(1)
        index = rgb.to(torch.int64).add_(self._offsets)
        return self.table[index.view(-1)].view(-1, 3)
