# SPDX-License-Identifier: Apache-2.0
"""The first half of the method: pictures made small, the dense model, and how unsure it is.

Shape legend: H, W full resolution; h, w low resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import DenseInput
from sparserefine_ros.clock import StageClock
from sparserefine_ros.dense.segmenter import Segmenter, open_segmenter
from sparserefine_ros.errors import ModelOutputError
from sparserefine_ros.image import resize_image
from sparserefine_ros.records import DenseOutput, StageTimes, Uncertainty
from sparserefine_ros.uncertainty import measure_uncertainty


@dataclass(frozen=True)
class DenseResult:
    """What is known of a picture at low resolution.

    Attributes:
        full_size: H, W.
        low_res_image: uint8 [h, w, 3] RGB.
        dense: logits, and features where the bundle uses them.
        uncertainty: of the logits.
        times: of these stages; the dense model's is that of the whole batch.
        batch: number of pictures that the dense model saw together.
    """

    full_size: tuple[int, int]
    low_res_image: NDArray[np.uint8]
    dense: DenseOutput
    uncertainty: Uncertainty
    times: StageTimes
    batch: int = 1


class DenseStage:
    """Resize, dense model and entropy.

    Args:
        segmenter: a dense model ready to run.
        spec: the pictures it wants.
        max_batch: how many of them at once.
    """

    def __init__(self, segmenter: Segmenter, spec: DenseInput, max_batch: int = 1) -> None:
        self._segmenter, self._spec, self._max_batch = segmenter, spec, max_batch

    def __call__(self, image: NDArray[np.uint8]) -> DenseResult:
        """Look at one picture, see `run_batch`."""
        return self.run_batch([image])[0]

    def run_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[DenseResult]:
        """Look at pictures, uint8 [H, W, 3] RGB each, C-contiguous, in as few batches as it takes.

        Raises:
            ModelOutputError: the dense model failed or returned something unusable.
        """
        clocks = [StageClock() for _ in images]
        small = []
        for image, clock in zip(images, clocks, strict=True):
            with clock("resize"):
                size = self._spec.low_res_size((image.shape[0], image.shape[1]))
                small.append(resize_image(image, size))
        found: dict[int, DenseResult] = {}
        for batch in self._batches(small):
            shared = StageClock()
            with shared("dense"):
                outputs = self._segmenter([small[index] for index in batch])
            for index, dense in zip(batch, outputs, strict=True):
                with clocks[index]("entropy"):
                    uncertainty = _measure(dense)
                found[index] = DenseResult(
                    full_size=(images[index].shape[0], images[index].shape[1]),
                    low_res_image=small[index],
                    dense=dense,
                    uncertainty=uncertainty,
                    times=clocks[index].times() + shared.times(),
                    batch=len(batch),
                )
        return [found[index] for index in range(len(images))]

    def _batches(self, images: Sequence[NDArray[np.uint8]]) -> Iterable[Sequence[int]]:
        """Indices of pictures of one size, as many as the model takes."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            sizes.setdefault(image.shape, []).append(index)
        for alike in sizes.values():
            for start in range(0, len(alike), self._max_batch):
                yield alike[start : start + self._max_batch]


def _measure(dense: DenseOutput) -> Uncertainty:
    try:
        return measure_uncertainty(dense.logits)
    except torch.OutOfMemoryError as err:
        raise ModelOutputError(
            f"the memory of the GPU ran out for the entropy of the dense result: {err}"
        ) from err.with_traceback(None)


def open_dense_stage(bundle: Bundle, *, threads: int = 0) -> DenseStage:
    """The dense stage of a bundle on the CPU, by the engine that suits it; 0 threads for all cores.

    Raises:
        BackendError: no engine for it.
    """
    segmenter = open_segmenter(bundle, backend="auto", device="cpu", threads=threads)
    return DenseStage(segmenter, bundle.spec.dense.input)
