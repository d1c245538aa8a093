# SPDX-License-Identifier: Apache-2.0
"""Timings of the pipeline's stages: outputs are compared before anything is timed.

Shape legend: H, W full resolution. Times are wall-clock milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.street import StreetScene
from sparserefine_ros.data.street.scene import LARGEST_PX, SMALLEST_PX
from sparserefine_ros.dense.stage import DenseResult, open_dense_stage
from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation.measure import Spread, describe_machine, peak_memory_mb
from sparserefine_ros.kernels.library import PYTORCH, kernels_from
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import STAGES, DenseOutput, Prediction, Uncertainty
from sparserefine_ros.refiner import load_refiner
from sparserefine_ros.sampling import FeatureSampler, SelectedBlocks
from sparserefine_ros.selection import expand_map
from sparserefine_ros.sparse.plan import build_plan

# Folding batch norm reorders sums; a pixel whose two best classes tie to 1e-5 may flip. Products in
# half precision flip those that tie to about a hundredth, and in a whole dense model some more.
_LABELS_EQUAL: Final = 0.9999
_LABELS_EQUAL_HALF: Final = 0.998
_DENSE_LABELS_EQUAL_HALF: Final = 0.99


# The rows of SparseRefine's table 6, and what is none of its networks.
_PARTS: Final = {
    "= selector": ("entropy", "selection"),
    "= sparse extractor": ("plan", "refine"),
    "= ensembler": ("fusion", "maps"),
    "all but networks, plan": tuple(
        name for name in STAGES if name not in ("dense", "plan", "refine")
    ),
}


@dataclass(frozen=True)
class Figures:
    """One benchmark run.

    Attributes:
        what: what was timed.
        machine: processor, cores, versions.
        bundle: name of the bundle.
        width, height: picture size.
        frames: number of timed frames.
        refined_share: mean refined share of the picture, 0 .. 1.
        labels_equal: share of labels equal to the reference computation, compared beforehand.
        rows: each timed thing.
        peak_memory_mb: largest resident size of this process so far.
    """

    what: str
    machine: str
    bundle: str
    width: int
    height: int
    frames: int
    refined_share: float
    labels_equal: float
    rows: dict[str, Spread]
    peak_memory_mb: float

    def to_table(self) -> str:
        """For people."""
        lines = [
            f"{self.what}: {self.bundle}, {self.width} x {self.height}, {self.frames} frames, "
            f"refined {self.refined_share:.1%}, labels equal to the reference "
            f"{self.labels_equal:.4%}",
            f"{self.machine}, peak memory {self.peak_memory_mb:.0f} MB",
            f"{'ms':<24}{'median':>10}{'p10':>10}{'p90':>10}",
        ]
        for name, spread in self.rows.items():
            lines.append(f"{name:<24}{spread.median:10.2f}{spread.low:10.2f}{spread.high:10.2f}")
        return "\n".join(lines) + "\n"


def bench_pipeline(
    bundle: Bundle,
    options: PipelineOptions,
    size: tuple[int, int],
    *,
    frames: int,
    warmup: int,
    density: float | None = None,
) -> Figures:
    """Time each stage on frames of a procedural street.

    Args:
        bundle: what is timed.
        options: how it is run.
        size: (H, W).
        frames: timed frames.
        warmup: frames before them.
        density: mean share of the pictures to refine, those the selector ranks highest, without a
            pixel budget; None for what the bundle's threshold and budget select.

    Raises:
        ConfigurationError: an impossible density.
        SparseRefineError: the outputs differ from the reference computation, or the memory of the
            GPU did not suffice for a frame.
    """
    pictures = street_pictures(size)
    pipeline = Pipeline(bundle, options)
    if density is not None:
        (pipeline.selector.threshold,) = thresholds_of(pipeline, pictures, [density])
        pipeline.selector.max_pixels = 0
    labels_equal = compare_with_reference(pipeline, pictures[0])
    for index in range(warmup):
        pipeline(pictures[index % len(pictures)])
    predictions = [
        _whole(pipeline(pictures[index % len(pictures)]))
        for index in tqdm(range(frames), desc=f"{size[1]} x {size[0]}", unit="frame")
    ]
    return Figures(
        what="pipeline",
        machine=describe_machine(),
        bundle=bundle.name,
        width=size[1],
        height=size[0],
        frames=frames,
        refined_share=float(np.mean([p.refined_share for p in predictions])),
        labels_equal=labels_equal,
        rows=stage_rows(predictions),
        peak_memory_mb=peak_memory_mb(),
    )


def _whole(prediction: Prediction) -> Prediction:
    """Refuse a frame that the memory of the GPU did not suffice to refine."""
    if prediction.unrefined:
        raise SparseRefineError(prediction.unrefined)
    return prediction


def thresholds_of(
    pipeline: Pipeline, pictures: Sequence[NDArray[np.uint8]], densities: Sequence[float]
) -> list[float]:
    """Thresholds above which those shares of all the pictures together lie, by the selector.

    Raises:
        ConfigurationError: an impossible density.
    """
    for density in densities:
        if not 0.0 < density < 1.0:
            raise ConfigurationError(f"expected a density between 0 and 1, got {density}")
    look, scores = open_dense_stage(pipeline.bundle), []
    for picture in pictures:
        found = look(picture)
        score = pipeline.selector.score(found.low_res_image, found.dense, found.uncertainty)
        scores.append(score.numpy())
    return [float(np.quantile(np.stack(scores), 1.0 - density)) for density in densities]


def stage_rows(predictions: Sequence[Prediction]) -> dict[str, Spread]:
    """Each stage, the parts that SparseRefine's table 6 adds up, and the whole."""
    stages = [p.times.milliseconds for p in predictions]
    rows = {name: Spread.of([times[name] for times in stages]) for name in STAGES}
    for part, members in _PARTS.items():
        rows[part] = Spread.of([sum(times[name] for name in members) for times in stages])
    rows["total"] = Spread.of([p.times.total_ms for p in predictions])
    return rows


def compare_with_reference(pipeline: Pipeline, image: NDArray[np.uint8]) -> float:
    """Share of labels equal to the plain modules' result, nothing folded, chunked or re-used.

    Raises:
        SparseRefineError: fewer than 99.99 % are equal, 99.8 % where products are not float32's; or
            see `reference_labels`.
    """
    least = _LABELS_EQUAL if pipeline.is_exact else _LABELS_EQUAL_HALF
    labels = _whole(pipeline(image)).labels
    assert labels is not None
    return _equal_share(labels, reference_labels(pipeline, image), least, "labels")


def _equal_share(
    labels: NDArray[np.uint8], reference: NDArray[np.uint8], least: float, what: str
) -> float:
    equal = float((labels == reference).mean())
    if equal < least:
        raise SparseRefineError(
            f"expected {least:.2%} of the {what} to equal the reference computation, got "
            f"{equal:.4%}; timings of wrong results mean nothing, so none were taken"
        )
    return equal


def _reference_dense(pipeline: Pipeline, image: NDArray[np.uint8]) -> DenseResult:
    """ONNX Runtime's result, or where it is asked for in half precision the pipeline's own."""
    reference = open_dense_stage(pipeline.bundle)(image)
    if pipeline.dense_precision == "model":
        return reference
    (found,) = pipeline.run_dense([image])
    dense, features, unsure = found.dense, found.dense.features, found.uncertainty
    _equal_share(
        unsure.labels.cpu().numpy(),
        reference.uncertainty.labels.numpy(),
        _DENSE_LABELS_EQUAL_HALF,
        "dense model's labels",
    )
    return replace(
        found,
        dense=DenseOutput(dense.logits.cpu(), None if features is None else features.cpu()),
        uncertainty=Uncertainty(
            unsure.entropy.cpu(), unsure.labels.cpu(), unsure.top_probability.cpu()
        ),
    )


def reference_labels(pipeline: Pipeline, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pipeline's result computed with the trainable modules on PyTorch, uint8 [H, W].

    Raises:
        SparseRefineError: the dense model is asked for in half precision, and fewer than 99 % of
            its labels equal those in its own.
    """
    bundle, found = pipeline.bundle, _reference_dense(pipeline, image)
    dense, uncertainty, full_size = found.dense, found.uncertainty, found.full_size
    labels = torch.from_numpy(expand_map(uncertainty.labels.numpy(), full_size))
    spec = bundle.spec.refiner
    if spec is None:
        return labels.numpy()
    selection = pipeline.selector(found.low_res_image, dense, uncertainty, full_size)
    if selection.count:
        refiner = load_refiner(bundle)
        plan = build_plan(selection.pixels, (1, *full_size), spec.depth, bounds=spec.bounds)
        blocks = SelectedBlocks(selection)
        dense_logits = blocks.sample(dense.logits)
        features = FeatureSampler(spec)(image, dense, blocks)
        with torch.inference_mode(), kernels_from(PYTORCH):
            refined_logits = refiner.extractor(features, plan)
            fused_logits = refiner.ensembler(dense_logits, refined_logits)
        labels.view(-1)[selection.pixels] = fused_logits.argmax(1).to(torch.uint8)
    return labels.numpy()


def street_pictures(size: tuple[int, int], *, count: int = 8) -> list[NDArray[np.uint8]]:
    """Frames of procedural streets not used in training, uint8 [H, W, 3] RGB."""
    return [
        StreetScene(-1_000_000 - i).render(2.0 * i, height=size[0], width=size[1]).image
        for i in tqdm(range(count), desc="rendering", unit="frame")
    ]


def parse_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT to (H, W).

    Raises:
        ConfigurationError: not of that form, or no size of a street.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    sides = [int(side) for side in match.groups()] if match else []
    if not sides or not all(SMALLEST_PX <= side <= LARGEST_PX for side in sides):
        raise ConfigurationError(
            f"expected a size such as 2048x1024, sides of {SMALLEST_PX} to {LARGEST_PX}, "
            f"got {text!r}"
        )
    return sides[1], sides[0]
