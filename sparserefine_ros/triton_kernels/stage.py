# SPDX-License-Identifier: Apache-2.0
"""Plan, extractor and fusion of a frame on a GPU: the twin of `refine_stage.CpuRefineStage`.

Up go the picture, the mask and, unless they lie there already, the dense maps; down comes the
summary of the fused pixels. The host waits for the GPU after each stage, so its time is its own.

Shape legend: H, W full resolution; h, w low resolution; N selected pixels; I features per pixel;
C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from triton.errors import TritonError

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import RefinerSpec
from sparserefine_ros.clock import StageClock
from sparserefine_ros.ensemble import GatedEnsembler, OracleEnsembler
from sparserefine_ros.errors import BackendError, DeviceMemoryError, ModelOutputError
from sparserefine_ros.image import Normaliser
from sparserefine_ros.records import DenseOutput, Selection, Uncertainty
from sparserefine_ros.refiner import Refiner
from sparserefine_ros.sparse.engines import open_engine
from sparserefine_ros.sparse.plan import SparsePlan
from sparserefine_ros.sparse.unet import SparseUNet
from sparserefine_ros.triton_kernels.convolution import tuned
from sparserefine_ros.triton_kernels.fusion import MOST_FUSED, TritonGate, measure_uncertainty
from sparserefine_ros.triton_kernels.runtime import check_device
from sparserefine_ros.triton_kernels.topology import plan_from_mask
from sparserefine_ros.triton_kernels.tuning import size_class
from sparserefine_ros.triton_kernels.unet import is_out_of_memory


class TritonRefineStage:
    """A `sparserefine_ros.refine_stage.RefineStage` on a GPU.

    Args:
        refiner: trained weights; they are copied.
        bundle: the bundle whose `refiner` section describes them.
        engine: of the sparse UNet, one that runs on a GPU; see `sparserefine_ros.sparse.engines`.
        device: the GPU.

    Raises:
        BackendError: no such GPU or engine, too little memory there for the weights, or an
            ensembler that only the CPU has.
    """

    on_gpu = True

    def __init__(
        self, refiner: Refiner, bundle: Bundle, *, engine: str, device: torch.device
    ) -> None:
        check_device(device)
        spec = bundle.spec.refiner
        assert spec is not None  # who loaded the refiner found its section
        self._depth, self._bounds, self._device = spec.depth, spec.bounds, device
        refiner = copy.deepcopy(refiner).eval()
        try:
            refiner.to(device)
            self._sample_features = _FeatureSampler(spec, device)
            self._extract: Callable[[Tensor, SparsePlan], Tensor] = refiner.extractor
            if isinstance(refiner.extractor, SparseUNet):
                self._extract = open_engine(engine, refiner.extractor, threads=1)
            self._fuse = _fuser(refiner.ensembler)
        except RuntimeError as err:  # its context may fail to open, too
            if "out of memory" not in str(err):
                raise
            raise BackendError(
                f"expected memory on {device} for the refiner's weights, it ran out ({err}); free "
                "memory of the GPU, or choose device cpu"
            ) from err.with_traceback(None)
        self.engine, self.description = engine, f"{engine} on {device}"
        self.settled = False
        self._met: set[tuple[int, tuple[int, int], tuple[int, int]]] = set()

    def __call__(
        self,
        image: NDArray[np.uint8],
        dense: DenseOutput,
        selection: Selection,
        clock: StageClock,
        truth: NDArray[np.uint8] | None = None,
    ) -> Uncertainty | None:
        """See `RefineStage`; what it returns is on the CPU."""
        if selection.count == 0:
            return None
        self.settled, before = False, tuned()
        try:
            found = self._refine(image, dense, selection, clock)
        except TritonError as err:
            raise BackendError(
                f"expected {self._device} to take Triton's kernels, it does not ({err}); choose "
                "another precision, or the sparse engine compiled"
            ) from err
        except RuntimeError as err:
            if not is_out_of_memory(err):
                raise
            raise DeviceMemoryError(
                f"expected memory on {self._device} to refine {selection.count} pixels, it ran out "
                f"({err}); lower max_refined_pixels, or free memory of the GPU"
            ) from err.with_traceback(None)  # which would hold the tensors of the failed run
        # Settled when the kernels of this frame had been compiled and tuned before. Sizes of the
        # levels below, and how taps are shared out, may be new where that of the pixels is not. For
        # another picture size memory is allocated.
        kind = (size_class(selection.count), selection.full_size, dense.size)
        self.settled = tuned() == before and kind in self._met
        self._met.add(kind)
        return found

    @torch.inference_mode()
    def _refine(
        self,
        image: NDArray[np.uint8],
        dense: DenseOutput,
        selection: Selection,
        clock: StageClock,
    ) -> Uncertainty:
        with clock("plan"):
            plan = self._plan(selection)
            self._wait()
        with clock("refine"):
            logits = dense.logits.to(self._device)
            sites = _Sites(plan.levels[0].sites, selection.full_size, dense.size)
            dense_logits = sites.sample(logits)
            features = self._sample_features(image, dense, dense_logits, sites)
            refined_logits = self._extract(features, plan)
            # The host waits here. float16 may overflow where float32 does not.
            if not refined_logits.isfinite().all():
                raise ModelOutputError(
                    "the refiner returned NaN or infinity; choose the sparse engine "
                    "triton-bfloat16 or triton"
                )
        with clock("fusion"):
            fused = self._fuse(dense_logits, refined_logits)
            return Uncertainty(fused.entropy.cpu(), fused.labels.cpu(), fused.top_probability.cpu())

    def _plan(self, selection: Selection) -> SparsePlan:
        if selection.whole_blocks:
            mask = selection.low_res_mask.to(self._device)[None]
            return plan_from_mask(
                mask, self._depth, full_size=selection.full_size, bounds=self._bounds
            )
        full = torch.zeros(selection.full_size, dtype=torch.bool, device=self._device)
        full.view(-1)[selection.pixels.to(self._device)] = True
        return plan_from_mask(full[None], self._depth, bounds=self._bounds)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


class _Sites:
    """Where the selected pixels lie at low resolution.

    Args:
        pixels: int64 [N], flat full-resolution index.
        full_size: (H, W).
        low_res_size: (h, w).
    """

    def __init__(
        self, pixels: Tensor, full_size: tuple[int, int], low_res_size: tuple[int, int]
    ) -> None:
        self.pixels, self._low_res_size = pixels, low_res_size
        row = torch.div(pixels, full_size[1], rounding_mode="floor")
        column = pixels - row * full_size[1]
        self._row = torch.div(row * low_res_size[0], full_size[0], rounding_mode="floor")
        self._column = torch.div(column * low_res_size[1], full_size[1], rounding_mode="floor")

    def sample(self, maps: Tensor) -> Tensor:
        """What maps [K, h', w'] of any size hold for each pixel's block, [N, K]."""
        (height, width), (low_height, low_width) = maps.shape[1:], self._low_res_size
        row, column = self._row, self._column
        if (height, width) != (low_height, low_width):
            row = torch.div(row * height, low_height, rounding_mode="floor")
            column = torch.div(column * width, low_width, rounding_mode="floor")
        # One row for each block, so that a pixel reads neighbouring memory.
        return maps.flatten(1).t().contiguous().index_select(0, row * width + column)


class _FeatureSampler:
    """The twin of `refiner.FeatureSampler` on the GPU."""

    def __init__(self, spec: RefinerSpec, device: torch.device) -> None:
        self._inputs = spec.inputs
        self._normaliser = Normaliser(spec.normalisation).to(device)
        self._device, self._staging = device, torch.empty(0, dtype=torch.uint8)

    def __call__(
        self, image: NDArray[np.uint8], dense: DenseOutput, dense_logits: Tensor, sites: _Sites
    ) -> Tensor:
        """Picture uint8 [H, W, 3] RGB on the host, logits [N, C] -> float32 [N, I]."""
        parts = []
        for name in self._inputs:
            if name == "rgb":
                rgb = self._upload(image).view(-1, 3).index_select(0, sites.pixels)
                parts.append(self._normaliser.rows_to_features(rgb))
            elif name == "logits":
                parts.append(dense_logits)
            else:
                assert dense.features is not None  # the segmenter returns what the bundle uses
                parts.append(sites.sample(dense.features.to(self._device)))
        return torch.cat(parts, 1)

    def _upload(self, image: NDArray[np.uint8]) -> Tensor:
        """Copy through pinned memory, several times faster than from where a message lies."""
        if self._staging.shape != image.shape:
            pinned = self._device.type == "cuda"
            self._staging = torch.empty(image.shape, dtype=torch.uint8, pin_memory=pinned)
        self._staging.numpy()[:] = image
        return self._staging.to(self._device, non_blocking=True)


def _fuser(ensembler: nn.Module) -> Callable[[Tensor, Tensor], Uncertainty]:
    """Dense and refined logits [N, C] to the summary of the fused ones, [N]."""
    if isinstance(ensembler, OracleEnsembler):
        raise BackendError(
            "expected an ensembler that runs on a GPU, the oracle does not; choose the sparse "
            "engine compiled or pytorch"
        )
    if isinstance(ensembler, GatedEnsembler) and ensembler.classes <= MOST_FUSED:
        return TritonGate(ensembler)

    def fuse(dense_logits: Tensor, refined_logits: Tensor) -> Uncertainty:
        return measure_uncertainty(ensembler(dense_logits, refined_logits).t())

    return fuse
