# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import NO_DIGEST
from numpy.typing import NDArray

from sparserefine_ros.bundle_spec import FileSpec, UNetRefinerSpec
from sparserefine_ros.records import DenseOutput
from sparserefine_ros.sampling import FeatureSampler, SelectedBlocks
from sparserefine_ros.selection import selection_from_mask

pytestmark = pytest.mark.usefixtures("engine")

WEIGHTS = "refiner.safetensors"
MEAN, STD = (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)


class TestSampling:
    @pytest.mark.parametrize("order", ["RGB", "BGR"])
    @pytest.mark.parametrize(
        "inputs",
        [("rgb",), ("logits",), ("rgb", "logits"), ("logits", "rgb"), ("features", "rgb")],
    )
    def test_features_in_the_order_of_the_bundle(
        self, inputs: tuple[str, ...], order: str, picture: NDArray[np.uint8]
    ) -> None:
        spec = UNetRefinerSpec(
            file=FileSpec(path=WEIGHTS, sha256=NO_DIGEST),
            widths=(4,),
            inputs=inputs,  # type: ignore[arg-type]
            channel_order=order,  # type: ignore[arg-type]
            mean=MEAN,
            std=STD,
        )
        mask = torch.from_numpy(np.random.default_rng(1).random((9, 13)) < 0.4)
        selection = selection_from_mask(mask, picture.shape[:2])
        dense = DenseOutput(torch.randn(3, 9, 13), torch.randn(5, 4, 6))
        blocks = SelectedBlocks(selection)
        features = FeatureSampler(spec)(picture, dense, blocks)
        pixels = picture.reshape(-1, 3)[selection.pixels.numpy()].astype(np.float64)
        rgb = ((pixels if order == "RGB" else pixels[:, ::-1]) - MEAN) / STD
        parts = {
            "rgb": rgb,
            "logits": blocks.sample(dense.logits).numpy(),
            "features": blocks.sample(dense.features).numpy(),
        }
        expected = np.concatenate([parts[name] for name in inputs], 1)
        assert features.dtype == torch.float32
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
        for dtype in (torch.float32, torch.bfloat16):
            out = torch.full((selection.count, 16), torch.nan, dtype=dtype)
            assert FeatureSampler(spec)(picture, dense, blocks, out) is out
            assert torch.equal(out[:, : features.shape[1]], features.to(dtype))
            assert not out[:, features.shape[1] :].any()

    @pytest.mark.parametrize(
        ("low", "full"), [((4, 6), (8, 12)), ((4, 6), (9, 13)), ((5, 4), (2, 3)), ((4, 4), (1, 1))]
    )
    @pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
    @pytest.mark.parametrize("shrink", [1, 2, 3])
    def test_dense_maps_of_the_block(
        self, low: tuple[int, int], full: tuple[int, int], share: float, shrink: int
    ) -> None:
        height, width = -(-low[0] // shrink), -(-low[1] // shrink)
        maps = torch.randn(3, height, width, generator=torch.Generator().manual_seed(1))
        mask = torch.from_numpy(np.random.default_rng(1).random(low) < share)
        selection = selection_from_mask(mask, full)
        expected = [
            maps[:, row * height // low[0], column * width // low[1]].tolist()
            for row, column in (
                (p // full[1] * low[0] // full[0], p % full[1] * low[1] // full[1])
                for p in selection.pixels.tolist()
            )
        ]
        found = SelectedBlocks(selection).sample(maps)
        assert found.shape == (selection.count, 3)
        assert found.tolist() == expected
