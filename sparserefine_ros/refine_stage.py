# SPDX-License-Identifier: Apache-2.0
"""Plan, extractor and fusion of one frame, for inference.

Shape legend: H, W full resolution; N selected pixels; C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.clock import StageClock
from sparserefine_ros.dense.devices import device_kind, require_gpu
from sparserefine_ros.ensemble import Fuser
from sparserefine_ros.errors import BackendError, ModelOutputError
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.records import DenseOutput, Selection, Uncertainty
from sparserefine_ros.refiner import Refiner, refiner_spec
from sparserefine_ros.sampling import FeatureSampler, SelectedBlocks
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


class RefineStage(Protocol):
    """Refines the selected pixels of one frame after another; not re-entrant.

    Attributes:
        engine: name of the engine of the sparse UNet.
        description: what computes, for logs and diagnostics.
        on_gpu: whether dense results may stay on the GPU for it.
        settled: whether the last frame took as long as others of its size will.
    """

    engine: str
    description: str
    on_gpu: bool
    settled: bool

    def __call__(
        self,
        image: NDArray[np.uint8],
        dense: DenseOutput,
        selection: Selection,
        clock: StageClock,
        truth: NDArray[np.uint8] | None = None,
    ) -> Uncertainty | None:
        """Return the summary of the fused logits [N]; None when nothing was selected.

        Args:
            image: uint8 [H, W, 3], RGB.
            dense: of this picture.
            selection: N pixels.
            clock: takes the time of plan, refine and fusion.
            truth: uint8 [H, W]; only an oracle, which runs on the CPU, looks at it.

        Raises:
            ModelOutputError: the refiner returned NaN or infinity.
            DeviceMemoryError: the GPU has too little memory for so many pixels.
            BackendError: the GPU refuses a kernel.
        """


class CpuRefineStage:
    """A `RefineStage` on the CPU.

    Args:
        refiner: trained weights; they are copied.
        bundle: the bundle whose `refiner` section describes them.
        engine: of the sparse UNet, see `sparserefine_ros.sparse.engines`.

    Raises:
        BackendError: no engine of that name, or it is not installed.
    """

    on_gpu = False
    settled = True

    def __init__(self, refiner: Refiner, bundle: Bundle, *, engine: str = AUTO) -> None:
        spec = refiner_spec(bundle)
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
        """See `RefineStage`."""
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
) -> RefineStage:
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
        return CpuRefineStage(refiner, bundle, engine=engine)
    # Without Triton nothing of the stage runs on a GPU.
    on_gpu = device_kind(device) != "cpu" and has_triton()
    name = choose_engine(engine, device if on_gpu else "cpu")
    if not runs_on_gpu(name):
        return CpuRefineStage(refiner, bundle, engine=name)
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
