# SPDX-License-Identifier: Apache-2.0
"""What the refiner sees of the selected pixels.

Shape legend: H, W full resolution; h, w low resolution; N selected pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparserefine_ros.bundle_spec import RefinerSpec
from sparserefine_ros.image import Normaliser
from sparserefine_ros.kernels import sampling
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.kernels.sampling import SampledColours, SampledMap
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
        self.pixels, self._low_res_size = selection.pixels, selection.low_res_size
        self._kernels = compiled_kernels()
        if self._kernels is not None:
            self._blocks, self._block_of = sampling.find_blocks(
                self._kernels, selection.low_res_mask, selection.low_res_pixels
            )
        else:
            mask = selection.low_res_mask.view(-1).numpy()
            self._blocks = torch.from_numpy(np.flatnonzero(mask))
            block_of = np.cumsum(mask, dtype=np.int32) - 1
            self._block_of = torch.from_numpy(block_of.take(selection.low_res_pixels.numpy()))
        self.block_count = self._blocks.numel()

    def map_at(self, column: int, maps: Tensor) -> SampledMap:
        """Maps [K, h', w'], logits at low resolution or features at any size, from a column on."""
        places, size = self._blocks, (maps.shape[1], maps.shape[2])
        if size != self._low_res_size:
            places = _nearest_places(self._low_res_size, size)[places]
        return SampledMap(maps.flatten(1), places, column)

    def fetch(self, maps: Sequence[SampledMap], width: int, dtype: torch.dtype) -> Tensor:
        """A row for each block, [B, width], with zeros where no map is."""
        if self._kernels is not None:
            return sampling.sample_rows(self._kernels, maps, self.block_count, width, dtype)
        rows = torch.zeros(self.block_count, width)
        for x in maps:
            # NumPy's is several times faster than `index_select` along rows that long.
            taken = x.values.numpy().take(x.places.numpy(), axis=1)
            rows[:, x.column : x.column + len(taken)] = torch.from_numpy(taken.T)
        return rows.to(dtype)

    def repeat(self, rows: Tensor, out: Tensor, colours: SampledColours | None = None) -> Tensor:
        """Write to `out` [N, width] the row of each pixel's block, [B, width], and its colours."""
        if self._kernels is not None:
            sampling.repeat_rows(self._kernels, rows, self._block_of, colours, out)
            return out
        torch.index_select(rows, 0, self._block_of, out=out)
        if colours is not None and colours.columns:
            values = colours.normaliser.pixels_to_features(colours.image, colours.pixels)
            for column in colours.columns:
                out[:, column : column + 3] = values
        return out

    def sample(self, maps: Tensor) -> Tensor:
        """From float32 [K, h', w'] as in `map_at`, float32 [N, K]."""
        rows = self.fetch([self.map_at(0, maps)], maps.shape[0], torch.float32)
        return self.repeat(rows, torch.empty(self.pixels.numel(), maps.shape[0]))


@functools.lru_cache(maxsize=4)
def _nearest_places(low_res_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """For each low-resolution pixel the place in a map of another size, int64 [h * w]."""
    rows, columns = (nearest_index(full, low) for full, low in zip(low_res_size, size, strict=True))
    return (rows[:, None] * size[1] + columns).flatten()


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
        maps, columns, width = [], [], 0
        for name in self._inputs:
            if name == "rgb":
                columns.append(width)
                width += 3
            else:
                found = dense.logits if name == "logits" else dense.features
                assert found is not None  # the segmenter returns what the bundle uses
                maps.append(blocks.map_at(width, found))
                width += found.shape[0]
        if out is None:
            out = torch.empty(blocks.pixels.numel(), width)
        rows = blocks.fetch(maps, out.shape[1], out.dtype)
        colours = SampledColours(self._normaliser, image, blocks.pixels, columns)
        return blocks.repeat(rows, out, colours)
