# SPDX-License-Identifier: Apache-2.0
"""The method written out, with plain modules and loops, to hold the pipeline against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from oracle import DenseUNet
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import Prediction

MEAN = np.array([123.675, 116.28, 103.53])


STD = np.array([58.395, 57.12, 57.375])


THRESHOLD = 1.0


Picture = NDArray[np.uint8]


@dataclass
class Naive:
    """What the method gives, all [H, W]; probabilities [H, W, C]."""

    dense_probabilities: Tensor
    dense_entropy: Tensor
    probabilities: Tensor
    refined: Tensor

    @property
    def entropy(self) -> Tensor:
        return entropy_of(self.probabilities)


def entropy_of(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp_min(1e-5).log()).sum(-1)


def gate(weights: dict[str, Tensor], dense: Tensor, refined: Tensor) -> Tensor:
    """Fused logits of [..., C] each."""

    def mlp(name: str, x: Tensor) -> Tensor:
        hidden = F.linear(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"]).relu()
        return F.linear(hidden, weights[f"{name}.2.weight"], weights[f"{name}.2.bias"])

    evidence = []
    for logits in (dense, refined):
        probabilities = logits.softmax(-1)
        evidence += [probabilities, entropy_of(probabilities)[..., None]]
    share = mlp("gate", torch.cat(evidence, -1)).softmax(-1)
    return mlp("mix", share[..., :1] * dense + share[..., 1:] * refined)


def naive(folder: Path, image: Picture, threshold: float = THRESHOLD) -> Naive:
    """The tiny bundle's method step by step in float64, nothing of the package involved."""
    full = image.shape[:2]
    low = [max(4, round(side * 0.5 / 4) * 4) for side in full]
    shrinks = low[0] <= full[0] and low[1] <= full[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    small = cv2.resize(image, (low[1], low[0]), interpolation=interpolation).reshape(*low, 3)
    pixels = ((small - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "dense.onnx")
    (raw,) = session.run(None, {session.get_inputs()[0].name: pixels})
    low_res = F.interpolate(torch.from_numpy(raw).double(), size=low, mode="bilinear")[0]

    rows = [y * low[0] // full[0] for y in range(full[0])]
    columns = [x * low[1] // full[1] for x in range(full[1])]
    dense = low_res[:, rows][:, :, columns]
    dense_probabilities = dense.permute(1, 2, 0).softmax(-1)
    dense_entropy = entropy_of(dense_probabilities)
    refined = dense_entropy > threshold

    weights = {k: v.double() for k, v in load_file(folder / "refiner.safetensors").items()}
    rgb = torch.from_numpy((image - MEAN) / STD).permute(2, 0, 1)
    unet = DenseUNet(
        {k.removeprefix("extractor."): v for k, v in weights.items() if k.startswith("extractor.")},
        "image",
        training=False,
    )
    refined_logits = unet(torch.cat([rgb, dense])[None], refined[None, None])[0]
    gates = {k.removeprefix("ensembler."): v for k, v in weights.items()}
    fused = gate(gates, dense.permute(1, 2, 0), refined_logits.permute(1, 2, 0))
    probabilities = torch.where(refined[..., None], fused.softmax(-1), dense_probabilities)
    return Naive(dense_probabilities, dense_entropy, probabilities, refined)


def arithmetic() -> float:
    """What the sparse engine in use moves probabilities and entropies by."""
    kernels = compiled_kernels()
    return 5e-3 if kernels is not None and kernels.has_bfloat16 else 1e-3


def check_equal(found: Prediction, expected: Naive, *, unsure: float | None = None) -> None:
    """Hold every map against the naive result.

    The pipeline folds norms, in float32 or with products of bfloat16: labels may differ where the
    two best classes are within `unsure`, and blocks where the entropy is that close to the
    threshold would not compare; callers check that there are none of the latter.
    """
    unsure = arithmetic() if unsure is None else unsure
    assert found.labels is not None
    assert found.entropy is not None
    assert found.confidence is not None
    assert found.refined is not None
    assert found.dense_labels is not None
    full = tuple(expected.refined.shape)
    for array, dtype in (
        (found.labels, np.uint8),
        (found.entropy, np.float32),
        (found.confidence, np.uint8),
        (found.refined, np.bool_),
        (found.dense_labels, np.uint8),
    ):
        assert array.dtype == dtype
        assert array.shape == full
        assert array.flags.c_contiguous
    assert np.array_equal(found.refined, expected.refined)
    assert found.refined_pixels == found.candidate_pixels == int(expected.refined.sum())
    assert found.refined_share == pytest.approx(expected.refined.double().mean().item())
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=unsure)
    top = expected.probabilities.amax(-1)
    # Half a level of rounding, and what float32 moves.
    assert (torch.from_numpy(found.confidence) - 255 * top).abs().max() <= 0.5 + 255 * unsure
    for labels, probabilities in (
        (found.labels, expected.probabilities),
        (found.dense_labels, expected.dense_probabilities),
    ):
        best = probabilities.topk(2).values
        sure = best[..., 0] - best[..., 1] > unsure
        assert sure.double().mean() > 0.9 or sure.numel() < 60
        assert torch.equal(torch.from_numpy(labels)[sure].long(), probabilities.argmax(-1)[sure])
        assert labels.max() < 3


def fresh(folder: Path, **options: object) -> Pipeline:
    return Pipeline(Bundle.open(folder), PipelineOptions(threads=1, **options))  # type: ignore[arg-type]
