# SPDX-License-Identifier: Apache-2.0
"""The refiner of a bundle: pixel features, sparse UNet and ensembler, and their weights on disk.

Shape legend: H, W full resolution; h, w low resolution; N selected pixels; C classes.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparserefine_ros.bundle import Bundle, RefinerSpec
from sparserefine_ros.clock import StageClock
from sparserefine_ros.ensemble import Fuser, make_ensembler
from sparserefine_ros.errors import BundleError
from sparserefine_ros.image import Normaliser
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.records import DenseOutput, Selection, Uncertainty
from sparserefine_ros.selection import nearest_index
from sparserefine_ros.sparse.compiled import CompiledUNet
from sparserefine_ros.sparse.native import NativeUNet
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.sparse.unet import SparseUNet


class Refiner(nn.Module):
    """Sparse UNet and ensembler.

    Args:
        spec: a bundle's `refiner` section.
        channels: features per pixel I, see `BundleSpec.refiner_channels`.
        classes: C.

    Attributes:
        unet: features [N, I] and a plan -> refined logits [N, C].
        ensembler: dense and refined logits [N, C] -> fused logits [N, C].
    """

    def __init__(self, spec: RefinerSpec, channels: int, classes: int) -> None:
        super().__init__()
        self.unet = SparseUNet(channels, classes, widths=spec.widths, blocks=spec.blocks)
        self.ensembler = make_ensembler(spec.ensembler, classes)


class FeatureSampler:
    """Samples what the refiner sees of each selected pixel."""

    def __init__(self, spec: RefinerSpec) -> None:
        self._inputs = spec.inputs
        self._normaliser = Normaliser(spec.normalisation)

    def __call__(
        self,
        image: NDArray[np.uint8],
        dense: DenseOutput,
        selection: Selection,
        dense_logits: Tensor,
    ) -> Tensor:
        """Concatenate the features named in the bundle.

        Args:
            image: uint8 [H, W, 3] RGB, C-contiguous.
            dense: the dense result, with features where the bundle names them.
            selection: N pixels.
            dense_logits: float32 [N, C] at those pixels, as `sample_dense` gives them.

        Returns:
            float32 [N, I].
        """
        parts = []
        for name in self._inputs:
            if name == "rgb":
                parts.append(self._normaliser.pixels_to_features(image, selection.pixels))
            elif name == "logits":
                parts.append(dense_logits)
            else:
                assert dense.features is not None  # the segmenter returns what the bundle uses
                parts.append(sample_dense(dense.features, selection))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def sample_dense(maps: Tensor, selection: Selection) -> Tensor:
    """What dense maps hold for the block each selected pixel lies in, by nearest neighbour.

    Args:
        maps: float32 [K, h', w']: logits at low resolution, or features at any size.
        selection: N pixels.

    Returns:
        float32 [N, K].
    """
    mask = selection.low_res_mask.view(-1).numpy()
    blocks = np.flatnonzero(mask)
    low_res_size = selection.low_res_mask.shape
    if maps.shape[1:] != low_res_size:
        rows, columns = np.divmod(blocks, low_res_size[1])
        row_of, column_of = (
            nearest_index(full, low).numpy()
            for full, low in zip(low_res_size, maps.shape[1:], strict=True)
        )
        blocks = row_of[rows] * maps.shape[2] + column_of[columns]
    # Each low-resolution pixel is fetched once, then its row is repeated over its block.
    rows = np.ascontiguousarray(maps.reshape(maps.shape[0], -1).numpy().take(blocks, axis=1).T)
    row_of = np.cumsum(mask, dtype=np.int32) - 1
    index = torch.from_numpy(row_of.take(selection.low_res_pixels.numpy()))
    return torch.from_numpy(rows).index_select(0, index)


class RefineStage:
    """Plan, sparse UNet and fusion of one frame, for inference on the CPU.

    Args:
        refiner: trained weights; they are copied.
        bundle: the bundle whose `refiner` section describes them.

    Attributes:
        description: what computes, for logs and diagnostics.
    """

    def __init__(self, refiner: Refiner, bundle: Bundle) -> None:
        spec = _refiner_spec(bundle)
        self._depth, self._bounds = len(spec.widths), spec.bounds
        self._sample_features = FeatureSampler(spec)
        kernels, threads = compiled_kernels(), torch.get_num_threads()
        if kernels is None:
            self._unet: CompiledUNet | NativeUNet = NativeUNet(refiner.unet)
        else:
            self._unet = CompiledUNet(refiner.unet, kernels, threads=threads)
        self._fuse = Fuser(copy.deepcopy(refiner.ensembler).eval(), kernels)
        engine = f"compiled {kernels.name}" if kernels else "PyTorch"
        self.description = f"native CPU ({engine}), {threads} threads"

    def __call__(
        self, image: NDArray[np.uint8], dense: DenseOutput, selection: Selection, clock: StageClock
    ) -> Uncertainty | None:
        """Return the summary of the fused logits [N]; None when nothing was selected."""
        if selection.count == 0:
            return None
        with clock("plan"):
            plan = build_plan(
                selection.pixels, (1, *selection.full_size), self._depth, bounds=self._bounds
            )
        with clock("refine"):
            dense_logits = sample_dense(dense.logits, selection)
            features = self._sample_features(image, dense, selection, dense_logits)
            refined_logits = self._unet(features, plan)
        with clock("fusion"):
            return self._fuse(dense_logits, refined_logits)


def _refiner_spec(bundle: Bundle) -> RefinerSpec:
    if bundle.spec.refiner is None:
        raise BundleError(f"{bundle.name} has no refiner; train one: sparserefine train refiner")
    return bundle.spec.refiner


def save_refiner(refiner: Refiner, path: Path) -> None:
    """Write the weights as safetensors; `path` is replaced only once the file is whole."""
    aside = path.with_suffix(".tmp")
    save_file({key: value.contiguous() for key, value in refiner.state_dict().items()}, aside)
    aside.replace(path)


def load_refiner(bundle: Bundle) -> Refiner:
    """Build the refiner of a bundle with its weights, in evaluation mode.

    Raises:
        BundleError: no refiner in the bundle, or weights that do not fit its description.
    """
    spec = _refiner_spec(bundle)
    path = bundle.path(spec.file)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as err:
        raise BundleError(f"{path} is not a readable safetensors file: {err}") from err
    refiner = Refiner(spec, bundle.spec.refiner_channels(), len(bundle.spec.classes))
    mistakes = _differences(refiner.state_dict(), weights)
    if mistakes:
        raise BundleError(
            f"{path} does not fit the refiner section of bundle.yaml: {'; '.join(mistakes[:5])}"
            f"{f' and {len(mistakes) - 5} more' if len(mistakes) > 5 else ''}"
        )
    refiner.load_state_dict(weights)
    return refiner.eval()


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    mistakes = []
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            mistakes.append(f"{key} is missing")
        elif key not in expected:
            mistakes.append(f"{key} is unknown")
        elif expected[key].shape != found[key].shape:
            mistakes.append(
                f"{key}: expected {list(expected[key].shape)}, got {list(found[key].shape)}"
            )
        elif not torch.isfinite(found[key]).all():
            mistakes.append(f"{key} holds NaN or infinity")
    return mistakes
