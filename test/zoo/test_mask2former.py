# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from zoo.small_models import MASK2FORMER, SWIN

from sparserefine_ros.errors import BackendError
from sparserefine_ros.zoo.mask2former import Mask2Former, build_mask2former

transformers = pytest.importorskip("transformers")

CLASSES = 5


@pytest.fixture(scope="module")
def network() -> Mask2Former:
    torch.manual_seed(3)
    return build_mask2former(CLASSES, SWIN, **MASK2FORMER).eval()


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
    assert masks.shape[:2] == (2, MASK2FORMER["num_queries"])
    shares = np.exp(classes) / np.exp(classes).sum(-1, keepdims=True)
    expected = np.zeros(scores.shape)
    for b in range(2):
        for q in range(MASK2FORMER["num_queries"]):
            for c in range(CLASSES):
                expected[b, c] += shares[b, q, c] / (1 + np.exp(-masks[b, q]))
    assert scores.shape == (2, CLASSES, size[0] // 4, size[1] // 4)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert scores.min() >= 0


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendError, match=r"Mask2Former needs the package transformers.*\[zoo\]"):
        build_mask2former(CLASSES, SWIN)
