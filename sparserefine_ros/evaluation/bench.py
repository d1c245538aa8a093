# SPDX-License-Identifier: Apache-2.0
"""Timings of the pipeline's stages: outputs are compared before anything is timed.

Shape legend: H, W full resolution. Times are wall-clock milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.street import StreetScene
from sparserefine_ros.dense.segmenter import open_segmenter
from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation.measure import Spread, describe_machine, peak_memory_mb
from sparserefine_ros.image import resize_image
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import STAGES, Prediction
from sparserefine_ros.refiner import FeatureSampler, load_refiner, sample_dense
from sparserefine_ros.selection import expand_map
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.uncertainty import measure_uncertainty

# Folding batch norm reorders sums; a pixel whose two best classes tie to 1e-5 may flip. Products of
# bfloat16 flip those that tie to about a hundredth.
_LABELS_EQUAL = 0.9999
_LABELS_EQUAL_BFLOAT16 = 0.998


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
) -> Figures:
    """Time each stage on frames of a procedural street.

    Args:
        bundle: what is timed.
        options: how it is run.
        size: (H, W).
        frames: timed frames.
        warmup: frames before them.

    Raises:
        SparseRefineError: the outputs differ from the reference computation.
    """
    pictures = street_pictures(size)
    pipeline = Pipeline(bundle, options)
    labels_equal = compare_with_reference(pipeline, pictures[0])
    for index in range(warmup):
        pipeline(pictures[index % len(pictures)])
    predictions = [
        pipeline(pictures[index % len(pictures)])
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


def stage_rows(predictions: Sequence[Prediction]) -> dict[str, Spread]:
    """Each stage, everything but the two networks together, and the whole."""
    stages = [p.times.milliseconds for p in predictions]
    rows = {name: Spread.of([times[name] for times in stages]) for name in STAGES}
    glue = [
        sum(times[n] for n in STAGES if n not in ("dense", "plan", "refine")) for times in stages
    ]
    rows["all but networks, plan"] = Spread.of(glue)
    rows["total"] = Spread.of([p.times.total_ms for p in predictions])
    return rows


def compare_with_reference(pipeline: Pipeline, image: NDArray[np.uint8]) -> float:
    """Share of labels equal to the plain modules' result, nothing folded, chunked or re-used.

    Raises:
        SparseRefineError: fewer than 99.99 % are equal, 99.8 % with products of bfloat16.
    """
    least = _LABELS_EQUAL
    if "bfloat16" in pipeline.backends["sparse"]:
        least = _LABELS_EQUAL_BFLOAT16
    labels = pipeline(image).labels
    assert labels is not None
    equal = float((labels == reference_labels(pipeline, image)).mean())
    if equal < least:
        raise SparseRefineError(
            f"expected {least:.2%} of the labels to equal the reference computation, got "
            f"{equal:.4%}; timings of wrong results mean nothing, so none were taken"
        )
    return equal


def reference_labels(pipeline: Pipeline, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pipeline's result computed with the trainable modules, uint8 [H, W]."""
    bundle = pipeline.bundle
    full_size = (image.shape[0], image.shape[1])
    segmenter = open_segmenter(bundle, backend="auto", device="cpu", threads=0)
    low_res_image = resize_image(image, bundle.spec.dense.input.low_res_size(full_size))
    dense = segmenter(low_res_image)
    uncertainty = measure_uncertainty(dense.logits)
    labels = expand_map(uncertainty.labels, full_size).contiguous()
    spec = bundle.spec.refiner
    if spec is None:
        return labels.numpy()
    selection = pipeline.selector(low_res_image, dense, uncertainty, full_size)
    if selection.count:
        refiner = load_refiner(bundle)
        plan = build_plan(selection.pixels, (1, *full_size), spec.depth, bounds=spec.bounds)
        dense_logits = sample_dense(dense.logits, selection)
        features = FeatureSampler(spec)(image, dense, selection, dense_logits)
        with torch.inference_mode():
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
        ConfigurationError: not of that form.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise ConfigurationError(f"expected a size such as 2048x1024, got {text!r}")
    return int(match[2]), int(match[1])
