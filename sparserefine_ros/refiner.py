# SPDX-License-Identifier: Apache-2.0
"""The refiner of a bundle: pixel features, sparse UNet and ensembler, and their weights on disk.

Shape legend: H, W full resolution; h, w low resolution; N selected pixels; C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import RefinerSpec
from sparserefine_ros.clock import StageClock
from sparserefine_ros.dense.devices import device_kind, require_gpu
from sparserefine_ros.ensemble import Fuser, make_ensembler
from sparserefine_ros.errors import BackendError, BundleError, ModelOutputError
from sparserefine_ros.image import Normaliser
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.records import DenseOutput, Selection, Uncertainty
from sparserefine_ros.selection import nearest_index
from sparserefine_ros.sparse.compiled import CompiledUNet
from sparserefine_ros.sparse.engines import (
    AUTO,
    choose_engine,
    has_triton,
    open_engine,
    require_triton,
    runs_on_gpu,
)
from sparserefine_ros.sparse.plan import SparsePlan, build_plan
from sparserefine_ros.sparse.pointnet import PointNet
from sparserefine_ros.sparse.unet import SparseUNet
from sparserefine_ros.weights import load_weights

if TYPE_CHECKING:
    from sparserefine_ros.triton_kernels.stage import TritonRefineStage


class Refiner(nn.Module):
    """Extractor, which sees full-resolution pixels, and ensembler, which fuses.

    Args:
        spec: a bundle's `refiner` section.
        channels: features per pixel I, see `BundleSpec.refiner_channels`.
        classes: C.

    Attributes:
        extractor: features [N, I] and a plan -> refined logits [N, C].
        ensembler: dense and refined logits [N, C] -> fused logits [N, C].
    """

    def __init__(self, spec: RefinerSpec, channels: int, classes: int) -> None:
        super().__init__()
        self.extractor: SparseUNet | PointNet
        if spec.kind == "unet":
            self.extractor = SparseUNet(channels, classes, widths=spec.widths, blocks=spec.blocks)
        else:
            self.extractor = PointNet(channels, classes, widths=spec.widths)
        self.ensembler = make_ensembler(spec.ensembler, classes)


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


class RefineStage:
    """Plan, extractor and fusion of one frame, for inference on the CPU.

    Args:
        refiner: trained weights; they are copied.
        bundle: the bundle whose `refiner` section describes them.
        engine: of the sparse UNet, see `sparserefine_ros.sparse.engines`.

    Attributes:
        engine: name of the engine.
        description: what computes, for logs and diagnostics.
        on_gpu: False.
        settled: True; no frame takes longer for being the first of its kind.

    Raises:
        BackendError: no engine of that name, or it is not installed.
    """

    on_gpu = False
    settled = True

    def __init__(self, refiner: Refiner, bundle: Bundle, *, engine: str = AUTO) -> None:
        spec = _refiner_spec(bundle)
        self._depth, self._bounds = spec.depth, spec.bounds
        self._sample_features = FeatureSampler(spec)
        kernels, threads = compiled_kernels(), torch.get_num_threads()
        self._extract, self.engine = _for_inference(refiner.extractor, engine, threads)
        self._input_buffer = (
            self._extract.input_buffer if isinstance(self._extract, CompiledUNet) else None
        )
        self._fuse = Fuser(copy.deepcopy(refiner.ensembler).eval(), kernels)
        variant = f" ({kernels.name})" if kernels and self.engine.startswith("compiled") else ""
        self.description = f"{self.engine}{variant}, {threads} threads"

    def __call__(
        self,
        image: NDArray[np.uint8],
        dense: DenseOutput,
        selection: Selection,
        clock: StageClock,
        truth: NDArray[np.uint8] | None = None,
    ) -> Uncertainty | None:
        """Return the summary of the fused logits [N]; None when nothing was selected.

        Only an oracle looks at the truth, uint8 [H, W].

        Raises:
            ModelOutputError: the refiner returned NaN or infinity.
        """
        if selection.count == 0:
            return None
        with clock("plan"):
            plan = build_plan(
                selection.pixels, (1, *selection.full_size), self._depth, bounds=self._bounds
            )
        with clock("refine"):
            blocks = SelectedBlocks(selection)
            dense_logits = blocks.sample(dense.logits)
            out = self._input_buffer(selection.count) if self._input_buffer else None
            features = self._sample_features(image, dense, blocks, out)
            refined_logits = self._extract(features, plan)
            _check_finite(refined_logits)
        with clock("fusion"):
            if truth is None:
                return self._fuse(dense_logits, refined_logits)
            labels = torch.from_numpy(truth).view(-1).index_select(0, selection.pixels)
            return self._fuse(dense_logits, refined_logits, labels)


def _check_finite(logits: Tensor) -> None:
    """Refuse NaN or infinity in logits [N, C], of which there are some."""
    count, classes = logits.shape
    pitch = logits.stride(0)
    if logits.stride(1) == 1 and pitch >= classes:
        # One product over the memory, with what fills its rows up, takes a tenth of the time of
        # `isfinite`; where it is not finite, it may have overflowed.
        memory = logits.as_strided(((count - 1) * pitch + classes,), (1,))
        if math.isfinite(memory.dot(memory)):
            return
    if not logits.isfinite().all():
        raise ModelOutputError("the refiner returned NaN or infinity; check its weights")


def open_refine_stage(
    refiner: Refiner, bundle: Bundle, *, engine: str = AUTO, device: str = "cpu"
) -> RefineStage | TritonRefineStage:
    """The refine stage where its engine runs.

    Args:
        refiner: trained weights; they are copied.
        bundle: the bundle whose `refiner` section describes them.
        engine: of the sparse UNet, see `sparserefine_ros.sparse.engines`; those that need no GPU
            run on the CPU, whatever the device.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        BackendError: no engine of that name, it is not installed, or there is no such GPU.
    """
    if isinstance(refiner.extractor, PointNet):
        return RefineStage(refiner, bundle, engine=engine)
    # Without Triton nothing of the stage runs on a GPU.
    on_gpu = device_kind(device) != "cpu" and has_triton()
    name = choose_engine(engine, device if on_gpu else "cpu")
    if not runs_on_gpu(name):
        return RefineStage(refiner, bundle, engine=name)
    require_triton(name)
    from sparserefine_ros.triton_kernels.runtime import suits
    from sparserefine_ros.triton_kernels.stage import TritonRefineStage

    if device == "cpu" and not suits(torch.device("cpu")):
        raise BackendError(
            f"expected a GPU for the sparse engine {name}, got device cpu; choose device cuda, or "
            "the sparse engine auto"
        )
    place = torch.device("cpu") if device == "cpu" else require_gpu(device, f"the engine {name}")
    return TritonRefineStage(refiner, bundle, engine=name, device=place)


def _for_inference(
    extractor: SparseUNet | PointNet, engine: str, threads: int
) -> tuple[Callable[[Tensor, SparsePlan], Tensor], str]:
    """What computes the refined logits, and its name."""
    if isinstance(extractor, PointNet):
        if engine not in (AUTO, "pytorch"):
            raise BackendError(
                f"expected the sparse engine auto or pytorch for a PointNet, got {engine!r}"
            )
        return torch.inference_mode()(copy.deepcopy(extractor).eval()), "pytorch"
    name = choose_engine(engine)
    return open_engine(name, extractor, threads=threads), name


def _refiner_spec(bundle: Bundle) -> RefinerSpec:
    if bundle.spec.refiner is None:
        raise BundleError(f"{bundle.name} has no refiner; train one: sparserefine train refiner")
    return bundle.spec.refiner


def load_refiner(bundle: Bundle) -> Refiner:
    """Build the refiner of a bundle with its weights, in evaluation mode.

    Raises:
        BundleError: no refiner in the bundle, or weights that do not fit its description.
    """
    spec = _refiner_spec(bundle)
    refiner = Refiner(spec, bundle.spec.refiner_channels(), len(bundle.spec.classes))
    load_weights(refiner, bundle.path(spec.file), section="refiner")
    return refiner.eval()
