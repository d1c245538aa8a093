# SPDX-License-Identifier: Apache-2.0
"""The first half of the method: the picture made small, the dense model, and how unsure it is.

Shape legend: H, W full resolution; h, w low resolution.
"""

from __future__ import annotations

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
from sparserefine_ros.records import DenseOutput, Uncertainty
from sparserefine_ros.uncertainty import measure_uncertainty


@dataclass(frozen=True)
class DenseResult:
    """What is known of a picture at low resolution.

    Attributes:
        full_size: H, W.
        low_res_image: uint8 [h, w, 3] RGB.
        dense: logits, and features where the bundle uses them.
        uncertainty: of the logits.
    """

    full_size: tuple[int, int]
    low_res_image: NDArray[np.uint8]
    dense: DenseOutput
    uncertainty: Uncertainty


class DenseStage:
    """Resize, dense model and entropy of one picture.

    Args:
        segmenter: a dense model ready to run.
        spec: the picture it wants.
    """

    def __init__(self, segmenter: Segmenter, spec: DenseInput) -> None:
        self._segmenter, self._spec = segmenter, spec

    def __call__(self, image: NDArray[np.uint8], clock: StageClock | None = None) -> DenseResult:
        """Look at a picture, uint8 [H, W, 3] RGB, C-contiguous.

        Raises:
            ModelOutputError: the dense model failed or returned something unusable.
        """
        clock = clock or StageClock()
        full_size = (image.shape[0], image.shape[1])
        with clock("resize"):
            low_res_image = resize_image(image, self._spec.low_res_size(full_size))
        with clock("dense"):
            dense = self._segmenter(low_res_image)
        with clock("entropy"):
            try:
                uncertainty = measure_uncertainty(dense.logits)
            except torch.OutOfMemoryError as err:
                raise ModelOutputError(
                    f"the memory of the GPU ran out for the entropy of the dense result: {err}"
                ) from err.with_traceback(None)
        return DenseResult(full_size, low_res_image, dense, uncertainty)


def open_dense_stage(bundle: Bundle, *, threads: int = 0) -> DenseStage:
    """The dense stage of a bundle on the CPU, by the engine that suits it; 0 threads for all cores.

    Raises:
        BackendError: no engine for it.
    """
    segmenter = open_segmenter(bundle, backend="auto", device="cpu", threads=threads)
    return DenseStage(segmenter, bundle.spec.dense.input)
