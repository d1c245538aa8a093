# SPDX-License-Identifier: Apache-2.0
"""Networks of the zoo, small enough for tests."""

from __future__ import annotations

from sparserefine_ros.zoo import mask2former, segnext

HRNET = {"widths": (6, 8, 10, 12), "modules": (1, 2, 1), "blocks": 2}
SEGNEXT = segnext.Size(
    widths=(8, 12, 16, 20), depths=(1, 2, 1, 1), head=64, expansions=(2, 3, 2, 2)
)
SWIN = mask2former.Size(8, (1, 1, 1, 1), (1, 1, 2, 2), 4)
MASK2FORMER = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 24,
    "dim_feedforward": 24, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2,
    "num_queries": 6,
}  # fmt: skip
