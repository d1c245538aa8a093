# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NO_DIGEST, make_tiny_bundle, random_statistics
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparserefine_ros.bundle import BUNDLE_FILE, Bundle, seal_bundle, sealed
from sparserefine_ros.bundle_spec import FileSpec, UNetRefinerSpec
from sparserefine_ros.clock import StageClock
from sparserefine_ros.configuration import write_yaml
from sparserefine_ros.errors import BundleError, ModelOutputError
from sparserefine_ros.kernels.library import compiled_kernels
from sparserefine_ros.records import DenseOutput, Uncertainty
from sparserefine_ros.refiner import (
    FeatureSampler,
    Refiner,
    RefineStage,
    SelectedBlocks,
    load_refiner,
)
from sparserefine_ros.selection import selection_from_mask
from sparserefine_ros.sparse.plan import SparsePlan, build_plan
from sparserefine_ros.weights import save_weights

pytestmark = pytest.mark.usefixtures("engine")

WEIGHTS = "refiner.safetensors"
MEAN, STD = (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)


def reseal(folder: Path, **changes: object) -> Bundle:
    """Change fields of the refiner section and correct the digests, as a user's edit would."""
    spec = Bundle.open(folder).spec
    assert spec.refiner is not None
    spec = spec.model_copy(update={"refiner": spec.refiner.model_copy(update=changes)})
    write_yaml(folder / BUNDLE_FILE, sealed(spec, folder), heading="changed")
    return Bundle.open(folder)


def with_weights(folder: Path, weights: dict[str, Tensor]) -> Bundle:
    """The bundle with other weights and the right digest for them."""
    save_file(weights, folder / WEIGHTS)
    return seal_bundle(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle that the test may change."""
    return make_tiny_bundle(tmp_path / "tiny")


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


class TestStage:
    def test_equals_the_trained_network_step_by_step(
        self, tiny_bundle: Path, picture: NDArray[np.uint8]
    ) -> None:
        bundle = Bundle.open(tiny_bundle)
        refiner = load_refiner(bundle)
        logits = torch.randn(3, 36, 52, generator=torch.Generator().manual_seed(2))
        mask = torch.from_numpy(np.random.default_rng(1).random((36, 52)) < 0.3)
        selection = selection_from_mask(mask, (75, 101))
        clock = StageClock()
        result = RefineStage(refiner, bundle)(picture, DenseOutput(logits), selection, clock)
        assert result is not None
        assert bundle.spec.refiner is not None
        blocks = SelectedBlocks(selection)
        at = blocks.sample(logits)
        features = FeatureSampler(bundle.spec.refiner)(picture, DenseOutput(logits), blocks)
        plan = build_plan(selection.pixels, (1, 75, 101), 2)
        with torch.no_grad():
            probabilities = refiner.ensembler(at, refiner.extractor(features, plan)).softmax(1)
        top = probabilities.max(1)
        # Folded norms against unfolded ones, in float32 or with products of bfloat16.
        kernels = compiled_kernels()
        moved = 1e-2 if kernels is not None and kernels.has_bfloat16 else 1e-3
        torch.testing.assert_close(result.top_probability, top.values, rtol=moved, atol=moved / 10)
        sure = probabilities.topk(2).values.diff().abs().view(-1) > moved
        assert sure.float().mean() > 0.9
        assert torch.equal(result.labels[sure].long(), top.indices[sure])
        times = clock.times().milliseconds
        assert {stage for stage, spent in times.items() if spent > 0} == {
            "plan",
            "refine",
            "fusion",
        }

    def test_nothing_selected(self, tiny_bundle: Path, picture: NDArray[np.uint8]) -> None:
        bundle = Bundle.open(tiny_bundle)
        selection = selection_from_mask(torch.zeros(36, 52, dtype=torch.bool), (75, 101))
        stage = RefineStage(load_refiner(bundle), bundle)
        assert stage(picture, DenseOutput(torch.zeros(3, 36, 52)), selection, StageClock()) is None

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30])
    def test_not_finite(
        self,
        value: float,
        tiny_bundle: Path,
        picture: NDArray[np.uint8],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        bundle = Bundle.open(tiny_bundle)
        selection = selection_from_mask(torch.ones(36, 52, dtype=torch.bool), (75, 101))
        stage = RefineStage(load_refiner(bundle), bundle)
        plain = stage._extract

        def extract(features: Tensor, plan: SparsePlan) -> Tensor:
            logits = plain(features, plan)
            logits[7, 1] = value
            return logits

        def run() -> Uncertainty | None:
            return stage(picture, DenseOutput(torch.zeros(3, 36, 52)), selection, StageClock())

        monkeypatch.setattr(stage, "_extract", torch.inference_mode()(extract))
        if value == 1e30:  # its square is not finite, but it is
            assert run() is not None
            return
        with pytest.raises(ModelOutputError, match="the refiner returned NaN or infinity"):
            run()

    def test_the_weights_are_copied(self, tiny_bundle: Path, picture: NDArray[np.uint8]) -> None:
        bundle = Bundle.open(tiny_bundle)
        refiner = load_refiner(bundle)
        selection = selection_from_mask(torch.ones(36, 52, dtype=torch.bool), (75, 101))
        dense = DenseOutput(torch.randn(3, 36, 52, generator=torch.Generator().manual_seed(2)))
        expected = RefineStage(refiner, bundle)(picture, dense, selection, StageClock())
        stage = RefineStage(refiner, bundle)
        with torch.no_grad():
            for parameter in refiner.parameters():
                parameter.zero_()
        found = stage(picture, dense, selection, StageClock())
        assert expected is not None
        assert found is not None
        torch.testing.assert_close(found.entropy, expected.entropy)


class TestLoading:
    def test_round_trip(self, tmp_path: Path) -> None:
        spec = UNetRefinerSpec(
            file=FileSpec(path=WEIGHTS, sha256=NO_DIGEST), widths=(4, 6, 8), blocks=2
        )
        refiner = Refiner(spec, 3, 5)
        random_statistics(refiner)
        save_weights(refiner, tmp_path / WEIGHTS)
        assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
        found = load_file(tmp_path / WEIGHTS)
        expected = refiner.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())

    def test_loads_in_evaluation_mode(self, folder: Path) -> None:
        refiner = load_refiner(Bundle.open(folder))
        assert not any(part.training for part in refiner.modules())
        weights = load_file(folder / WEIGHTS)
        assert all(torch.equal(weights[key], value) for key, value in refiner.state_dict().items())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"widths": (8, 16)}, r"expected \[9, 16, 16\], got \[9, 12, 12\]"),
            ({"widths": (8,)}, "is unknown"),
            ({"widths": (8, 12, 12)}, "is missing"),
            ({"blocks": 2}, r"after\.1\.\S+ is missing"),
            (
                {"inputs": ("rgb",)},
                r"stem\.kernel: expected \[9, 3, 8\], got \[9, 6, 8\]",
            ),
            ({"ensembler": "direct"}, r"ensembler\.gate\.0\.bias is unknown"),
        ],
    )
    def test_weights_that_do_not_fit(
        self, folder: Path, changes: dict[str, object], message: str
    ) -> None:
        bundle = reseal(folder, **changes)
        with pytest.raises(BundleError, match=message) as caught:
            load_refiner(bundle)
        assert "does not fit the refiner section of bundle.yaml" in str(caught.value)

    def test_many_mistakes_are_counted(self, folder: Path) -> None:
        with pytest.raises(BundleError, match=r"and \d+ more$"):
            load_refiner(reseal(folder, widths=(4, 6)))

    def test_one_wrong_shape(self, folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        weights["extractor.head.bias"] = torch.zeros(4)
        message = r"bundle.yaml: extractor\.head\.bias: expected \[3\], got \[4\]$"
        with pytest.raises(BundleError, match=message):
            load_refiner(with_weights(folder, weights))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, folder: Path, value: float) -> None:
        weights = load_file(folder / WEIGHTS)
        weights["extractor.stem.kernel"][0, 0, 0] = value
        with pytest.raises(BundleError, match=r"extractor\.stem\.kernel holds NaN or infinity"):
            load_refiner(with_weights(folder, weights))

    def test_a_variance_below_zero(self, folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        name = next(key for key in weights if key.endswith("running_var"))
        weights[name][0] = -0.5
        with pytest.raises(BundleError, match=f"{name} holds a variance below 0"):
            load_refiner(with_weights(folder, weights))

    def test_no_pickle_is_ever_loaded(self, folder: Path, tmp_path: Path) -> None:
        trap = tmp_path / "trap"

        class Trap:
            def __reduce__(self) -> tuple[object, ...]:
                return Path.touch, (trap,)

        for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
            write({"extractor.head.bias": Trap()}, folder / WEIGHTS)
            bundle = seal_bundle(folder)
            with pytest.raises(BundleError, match="not a readable safetensors file"):
                load_refiner(bundle)
        assert not trap.exists()

    def test_a_bundle_without_refiner(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        plain = bundle.spec.model_copy(update={"refiner": None})
        with pytest.raises(BundleError, match="tiny has no refiner; train one"):
            load_refiner(Bundle(folder, plain, bundle.digest))
