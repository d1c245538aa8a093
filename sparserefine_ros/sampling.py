# SPDX-License-Identifier: Apache-2.0
"""What the refiner sees of the selected pixels.

Shape legend: H, W full resolution; h, w low resolution; N selected pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparserefine_ros.bundle_spec import RefinerSpec
from sparserefine_ros.image import Normaliser
from sparserefine_ros.records import DenseOutput, Selection
from sparserefine_ros.selection import nearest_index


class SelectedBlocks:
    """Dense maps at the selected pixels: by nearest neighbour, what the block of each holds.

    Every block is fetched once, then its row is repeated for its pixels.

    Args:
        selection: N pixels in B low-resolution blocks.

    Attributes:
        pixels: int64 [N], the selected ones.
        block_count: B.
    """

    def __init__(self, selection: Selection) -> None:
        mask = selection.low_res_mask.view(-1).numpy()
        self.pixels, self._low_res_size = selection.pixels, selection.low_res_size
        self._blocks = np.flatnonzero(mask)
        self.block_count = self._blocks.size
        block_of = np.cumsum(mask, dtype=np.int32) - 1
        self._block_of = torch.from_numpy(block_of.take(selection.low_res_pixels.numpy()))

    def fetch(self, maps: Tensor) -> NDArray[np.float32]:
        """From [K, h', w'], logits at low resolution or features at any size, [K, B]."""
        blocks = self._blocks
        if maps.shape[1:] != self._low_res_size:
            rows, columns = np.divmod(blocks, self._low_res_size[1])
            row_of, column_of = (
                nearest_index(full, low).numpy()
                for full, low in zip(self._low_res_size, maps.shape[1:], strict=True)
            )
            blocks = row_of[rows] * maps.shape[2] + column_of[columns]
        return maps.reshape(maps.shape[0], -1).numpy().take(blocks, axis=1)

    def repeat(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """From a row for each block, [B, K], one for each pixel, [N, K]."""
        return torch.index_select(rows, 0, self._block_of, out=out)

    def sample(self, maps: Tensor) -> Tensor:
        """From float32 [K, h', w'] as in `fetch`, float32 [N, K]."""
        return self.repeat(torch.from_numpy(np.ascontiguousarray(self.fetch(maps).T)))


class FeatureSampler:
    """Samples what the refiner sees of each selected pixel."""

    def __init__(self, spec: RefinerSpec) -> None:
        self._inputs = spec.inputs
        self._normaliser = Normaliser(spec.normalisation)

    def __call__(
        self,
        image: NDArray[np.uint8],
        dense: DenseOutput,
        blocks: SelectedBlocks,
        out: Tensor | None = None,
    ) -> Tensor:
        """Concatenate the features named in the bundle.

        Args:
            image: uint8 [H, W, 3] RGB, C-contiguous.
            dense: the dense result, with features where the bundle names them.
            blocks: of N selected pixels.
            out: [N, I or more], where to write; what is more becomes zero.

        Returns:
            `out`, or without it float32 [N, I].
        """
        colours, parts, width = [], [], 0
        for name in self._inputs:
            if name == "rgb":
                colours.append(slice(width, width := width + 3))
            else:
                maps = dense.logits if name == "logits" else dense.features
                assert maps is not None  # the segmenter returns what the bundle uses
                parts.append((slice(width, width := width + maps.shape[0]), maps))
        rows = torch.zeros(blocks.block_count, width if out is None else out.shape[1])
        for columns, maps in parts:
            rows[:, columns] = torch.from_numpy(blocks.fetch(maps).T)
        features = blocks.repeat(rows if out is None else rows.to(out.dtype), out)
        for columns in colours:
            features[:, columns] = self._normaliser.pixels_to_features(image, blocks.pixels)
        return features
