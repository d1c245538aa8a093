# SPDX-License-Identifier: Apache-2.0
"""One picture in, labels and uncertainty out: the whole method, one line per stage.

Shape legend: H, W full resolution; h, w low resolution; C classes; N selected pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.clock import StageClock
from sparserefine_ros.deadline import PixelCost
from sparserefine_ros.dense.devices import device_kind
from sparserefine_ros.dense.options import DEFAULT_ENGINE, EngineOptions, Report, silent
from sparserefine_ros.dense.segmenter import open_segmenter
from sparserefine_ros.dense.stage import DenseResult, DenseStage
from sparserefine_ros.errors import ConfigurationError, DeviceMemoryError, ImageError
from sparserefine_ros.image import check_image
from sparserefine_ros.maps import assemble_maps
from sparserefine_ros.processor import available_cores
from sparserefine_ros.records import Map, Prediction, Selection, Uncertainty
from sparserefine_ros.refine_stage import open_refine_stage
from sparserefine_ros.refiner import load_refiner
from sparserefine_ros.selection import selection_from_mask
from sparserefine_ros.selectors import open_selector
from sparserefine_ros.sparse.engines import is_half

LABELS_ONLY = frozenset({Map.LABELS})

# More would be a mistake, and the system has no room for their stacks.
_MOST_THREADS = 1024


@dataclass(frozen=True)
class PipelineOptions:
    """How to run a bundle.

    Attributes:
        backend: dense engine, see `sparserefine_ros.dense.backends`; "auto" chooses.
        sparse_backend: engine of the sparse UNet, see `sparserefine_ros.sparse.engines`; "auto"
            takes the fastest that suits this processor.
        device: "cpu", "cuda" or "cuda:N", for the dense engine and sparse ones that need a GPU.
        threads: threads of each engine; 0 for one per available core.
        engine: precision, batch and cache of the dense engine.
        entropy_threshold: nats; None for the bundle's.
        max_refined_pixels: pixel budget, 0 for no limit; None for the bundle's.
    """

    backend: str = "auto"
    sparse_backend: str = "auto"
    device: str = "cpu"
    threads: int = 0
    engine: EngineOptions = DEFAULT_ENGINE
    entropy_threshold: float | None = None
    max_refined_pixels: int | None = None


class Pipeline:
    """A bundle ready to run. Not re-entrant: one call at a time.

    Attributes:
        is_exact: whether products are those of float32, in dense model and refiner.
        dense_precision: of the dense model, as `EngineOptions` has it.
        backends: what computes each, for logs and diagnostics.

    Args:
        bundle: verified bundle.
        options: how to run it.
        report: gets the progress of what takes long while it is made ready.

    Raises:
        BackendError: engine unknown, not installed, or it refuses the model.
        BundleError: the models contradict the bundle.
        ConfigurationError: an option is out of range.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: PipelineOptions = PipelineOptions(),
        report: Report = silent,
    ) -> None:
        if not 0 <= options.threads <= _MOST_THREADS:
            raise ConfigurationError(
                f"expected threads of 0 .. {_MOST_THREADS}, got {options.threads}"
            )
        threads = options.threads or available_cores()
        torch.set_num_threads(threads)
        self.bundle = bundle
        self.selector = open_selector(bundle)
        self._refine = None
        if bundle.spec.refiner:
            self._refine = open_refine_stage(
                load_refiner(bundle), bundle, engine=options.sparse_backend, device=options.device
            )
        segmenter = open_segmenter(
            bundle,
            backend=options.backend,
            device=options.device,
            threads=threads,
            engine=options.engine,
            on_device=self._stays_on_device(),
            report=report,
        )
        self._dense = DenseStage(segmenter, bundle.spec.dense.input, options.engine.max_batch)
        self.pixel_cost = PixelCost()
        self._bundle_threshold = self.selector.threshold
        self._bundle_budget = self.selector.max_pixels
        self.entropy_threshold = options.entropy_threshold
        self.max_refined_pixels = options.max_refined_pixels
        self.dense_precision = options.engine.precision
        # Float32 on a GPU is TF32 in its libraries.
        self.is_exact = (
            self.dense_precision == "model"
            and device_kind(options.device) == "cpu"
            and not (self._refine and is_half(self._refine.engine))
        )
        self.backends: Mapping[str, str] = {
            "dense": segmenter.description,
            "sparse": self._refine.description if self._refine else "none",
        }

    def __call__(
        self,
        image: NDArray[np.uint8],
        maps: frozenset[Map] = LABELS_ONLY,
        truth: NDArray[np.uint8] | None = None,
        *,
        time_left_ms: float | None = None,
    ) -> Prediction:
        """Segment one picture: `run_dense`, then `refine`.

        Args:
            image: uint8 [H, W, 3], RGB.
            maps: the full-resolution maps to compute.
            truth: uint8 [H, W], labels; only the oracles of an ablation look at them.
            time_left_ms: deadline, see `refine`, here from the call on.

        Raises:
            ImageError, ConfigurationError, ModelOutputError, BackendError: see there.
        """
        (found,) = self.run_dense([image])
        if time_left_ms is not None:
            time_left_ms -= found.times.total_ms
        return self.refine(image, found, maps, truth, time_left_ms=time_left_ms)

    def run_dense(self, images: Sequence[NDArray[np.uint8]]) -> list[DenseResult]:
        """Run the dense model on pictures, on several of one low-resolution size together.

        Args:
            images: uint8 [H, W, 3] each, RGB.

        Raises:
            ImageError: not such a picture.
            ModelOutputError: the dense model failed or returned something unusable.
        """
        for image in images:
            check_image(image)
        return self._dense.run_batch([np.ascontiguousarray(image) for image in images])

    def refine(
        self,
        image: NDArray[np.uint8],
        found: DenseResult,
        maps: frozenset[Map] = LABELS_ONLY,
        truth: NDArray[np.uint8] | None = None,
        *,
        time_left_ms: float | None = None,
    ) -> Prediction:
        """Refine the pixels of which the dense model is unsure.

        Args:
            image: uint8 [H, W, 3], RGB.
            found: what `run_dense` returned for it.
            maps: the full-resolution maps to compute.
            truth: uint8 [H, W], labels; only the oracles of an ablation look at them.
            time_left_ms: deadline, from the call on: as many pixels are refined as fit, after what
                the frames before have taught; None for as many as the selector selects.

        Raises:
            ImageError: another picture, as its size shows.
            ConfigurationError: an oracle without labels.
            ModelOutputError: the refiner returned something unusable.
            BackendError: a GPU refuses a kernel.
        """
        check_image(image)
        if image.shape[:2] != found.full_size:
            raise ImageError(
                "expected the picture that the dense model has seen, of "
                f"{found.full_size[1]} x {found.full_size[0]}, got {image.shape[1]} x "
                f"{image.shape[0]}; give `refine` what `run_dense` returned for this one"
            )
        image = np.ascontiguousarray(image)
        clock, affordable = StageClock(), None
        if time_left_ms is not None:
            affordable = self.pixel_cost.affordable(time_left_ms)
        with clock("selection"):
            selection = self._select(found, truth, affordable)
        selection, fused, unrefined = self._refined(image, found, selection, clock, truth)
        with clock("maps"):
            outputs = assemble_maps(found.uncertainty, selection, fused, maps)
        if not unrefined and (self._refine is None or self._refine.settled):
            self.pixel_cost.learn(selection.count, clock.elapsed_ms())
        return Prediction(
            labels=outputs.labels,
            entropy=outputs.entropy,
            confidence=outputs.confidence,
            refined=outputs.refined,
            dense_labels=outputs.dense_labels,
            dense=found.uncertainty,
            size=found.full_size,
            low_res_size=selection.low_res_size,
            refined_pixels=selection.count,
            candidate_pixels=selection.candidates,
            budget_hit=selection.budget_hit,
            affordable_pixels=affordable,
            unrefined=unrefined,
            batch=found.batch,
            times=found.times + clock.times(),
        )

    def _stays_on_device(self) -> bool:
        """Whether nobody but stages on the GPU looks at the dense maps."""
        return (
            self._refine is not None
            and self._refine.on_gpu
            and self.selector.kind in ("entropy", "random", "oracle")
        )

    def _refined(
        self,
        image: NDArray[np.uint8],
        found: DenseResult,
        selection: Selection,
        clock: StageClock,
        truth: NDArray[np.uint8] | None,
    ) -> tuple[Selection, Uncertainty | None, str]:
        """What was refined and how; where memory ran out nothing was, and why."""
        if self._refine is None:
            return selection, None, ""
        try:
            return selection, self._refine(image, found.dense, selection, clock, truth), ""
        except DeviceMemoryError as err:
            return self._nothing(found, selection.candidates), None, str(err)

    @staticmethod
    def _nothing(found: DenseResult, candidates: int) -> Selection:
        mask = torch.zeros(found.uncertainty.entropy.shape, dtype=torch.bool)
        return selection_from_mask(mask, found.full_size, candidates=candidates)

    def _select(
        self, found: DenseResult, truth: NDArray[np.uint8] | None, at_most: int | None
    ) -> Selection:
        if self._refine is None:
            return self._nothing(found, 0)
        return self.selector(
            found.low_res_image,
            found.dense,
            found.uncertainty,
            found.full_size,
            truth,
            at_most=at_most,
        )

    @property
    def entropy_threshold(self) -> float | None:
        """Pixels whose entropy exceeds this are refined; nats, 0 .. log(C).

        None for a bundle that selects by something else. Set to None, it is the bundle's value.
        """
        return self.selector.threshold if self.selector.kind == "entropy" else None

    @entropy_threshold.setter
    def entropy_threshold(self, nats: float | None) -> None:
        if nats is None:
            self.selector.threshold = self._bundle_threshold
            return
        if self.selector.kind != "entropy":
            raise ConfigurationError(
                f"expected no entropy threshold for {self.bundle.name}, which selects by "
                f"{self.selector.kind}, got {nats}; leave it at the bundle's value"
            )
        highest = math.log(len(self.bundle.spec.classes))
        if not 0.0 <= nats <= highest:
            raise ConfigurationError(
                f"expected an entropy threshold of 0 .. log(classes) = {highest:.3f} nats, "
                f"got {nats}"
            )
        self.selector.threshold = float(nats)

    @property
    def max_refined_pixels(self) -> int | None:
        """Pixel budget per frame; 0 for no limit. Set to None, it is the bundle's value."""
        return self.selector.max_pixels

    @max_refined_pixels.setter
    def max_refined_pixels(self, pixels: int | None) -> None:
        if pixels is None:
            pixels = self._bundle_budget
        if pixels < 0:
            raise ConfigurationError(
                f"expected a budget of 0 (no limit) or more pixels, got {pixels}"
            )
        self.selector.max_pixels = int(pixels)
