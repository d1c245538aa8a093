# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from sparserefine_ros.errors import BackendError
from sparserefine_ros.zoo.mask2former import Mask2Former, Size, build_mask2former

transformers = pytest.importorskip("transformers")

CLASSES = 5
SWIN = Size(8, (1, 1, 1, 1), (1, 1, 2, 2), 4)
SMALL = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 24,
    "dim_feedforward": 24, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2,
    "num_queries": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Mask2Former:
    torch.manual_seed(3)
    return build_mask2former(CLASSES, SWIN, **SMALL).eval()


@pytest.mark.parametrize("size", [(64, 96), (32, 32)])
def test_scores_are_class_times_mask_summed_over_queries(
    network: Mask2Former, size: tuple[int, int]
) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = network(image).numpy()
        parts = network.model(image)
        queries = parts.transformer_decoder_last_hidden_state
        classes = network.class_predictor(queries).double().numpy()
    masks = parts.masks_queries_logits[-1].double().numpy()
    assert masks.shape[:2] == (2, SMALL["num_queries"])
    shares = np.exp(classes) / np.exp(classes).sum(-1, keepdims=True)
    expected = np.zeros(scores.shape)
    for b in range(2):
        for q in range(SMALL["num_queries"]):
            for c in range(CLASSES):
                expected[b, c] += shares[b, q, c] / (1 + np.exp(-masks[b, q]))
    assert scores.shape == (2, CLASSES, size[0] // 4, size[1] // 4)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert scores.min() >= 0


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendError, match=r"Mask2Former needs the package transformers.*\[zoo\]"):
        build_mask2former(CLASSES, SWIN)
