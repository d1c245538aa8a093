# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_tiny_bundle, smooth_picture, with_sections
from safetensors.torch import load_file, save_file

from sparserefine_ros.bundle import BUNDLE_FILE, Bundle
from sparserefine_ros.errors import BundleError, ConfigurationError
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS, IGNORED_LABEL, DenseOutput, Map
from sparserefine_ros.selectors import SelectorNet, open_selector
from sparserefine_ros.uncertainty import measure_uncertainty
from sparserefine_ros.weights import save_weights

IMAGE = smooth_picture(40, 56)
FULL = (77, 111)


def dense_output(features: int = 5) -> DenseOutput:
    generator = torch.Generator().manual_seed(4)
    return DenseOutput(
        torch.randn(3, 40, 56, generator=generator),
        torch.randn(features, 20, 28, generator=generator),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle that the test may change."""
    return make_tiny_bundle(tmp_path / "tiny")


def selected(bundle: Bundle) -> np.ndarray:
    """The mask bool [h, w] that the bundle's selector draws on the dense output above."""
    dense = dense_output()
    selection = open_selector(bundle)(IMAGE, dense, measure_uncertainty(dense.logits), FULL)
    return selection.low_res_mask.numpy()


def test_entropy(folder: Path) -> None:
    bundle = with_sections(folder, selector={"kind": "entropy", "threshold_nats": 0.7})
    entropy = measure_uncertainty(dense_output().logits).entropy.numpy()
    assert np.array_equal(selected(bundle), entropy > 0.7)
    assert 0.1 < selected(bundle).mean() < 0.9


def test_magnitude_is_the_norm_of_the_features(folder: Path) -> None:
    features = {"name": "output", "channels": 5}
    bundle = with_sections(
        folder, selector={"kind": "magnitude", "threshold": 2.0}, features=features
    )
    maps = dense_output().features
    assert maps is not None
    expected = np.sqrt((maps.numpy().astype(np.float64) ** 2).sum(0)) > 2.0
    assert np.array_equal(selected(bundle), expected.repeat(2, 0).repeat(2, 1))
    assert 0.1 < expected.mean() < 0.9


def test_magnitude_needs_features(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"expected dense\.features for a selector by magnitude"):
        with_sections(folder, selector={"kind": "magnitude", "threshold": 2.0})


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_random_has_its_density_and_no_memory(folder: Path, density: float) -> None:
    bundle = with_sections(folder, selector={"kind": "random", "density": density})
    mask = selected(bundle)
    assert mask.mean() == pytest.approx(density, abs=0.02 if 0 < density < 1 else 0)
    assert np.array_equal(mask, selected(bundle))
    other = with_sections(folder, selector={"kind": "random", "density": density, "seed": 1})
    assert np.array_equal(mask, selected(other)) == (density in (0.0, 1.0))


class TestOracle:
    @pytest.fixture
    def bundle(self, folder: Path) -> Bundle:
        return with_sections(folder, selector={"kind": "oracle"})

    @pytest.fixture
    def truth(self) -> np.ndarray:
        truth = np.random.default_rng(2).integers(0, 3, FULL).astype(np.uint8)
        truth[:20] = IGNORED_LABEL
        return truth

    def test_selects_exactly_the_wrong_pixels(self, bundle: Bundle, truth: np.ndarray) -> None:
        dense = dense_output()
        uncertainty = measure_uncertainty(dense.logits)
        selection = open_selector(bundle)(IMAGE, dense, uncertainty, FULL, truth)
        expected, blocks = [], np.zeros((40, 56), bool)
        for y in range(20, FULL[0]):
            for x in range(FULL[1]):
                block = (y * 40 // FULL[0], x * 56 // FULL[1])
                if uncertainty.labels[block] != truth[y, x]:
                    expected.append((y * FULL[1] + x, block[0] * 56 + block[1]))
                    blocks[block] = True
        found = zip(selection.pixels.tolist(), selection.low_res_pixels.tolist(), strict=True)
        assert list(found) == expected
        assert np.array_equal(selection.low_res_mask, blocks)
        assert selection.candidates == len(expected)

    def test_budget(self, folder: Path, truth: np.ndarray) -> None:
        selector = open_selector(
            with_sections(folder, selector={"kind": "oracle", "max_pixels": 7})
        )
        dense = dense_output()
        selection = selector(IMAGE, dense, measure_uncertainty(dense.logits), FULL, truth)
        assert selection.count == 7
        assert selection.budget_hit
        # Spread over the picture, not its first rows.
        rows = selection.pixels.numpy() // FULL[1]
        assert rows.min() < 30
        assert rows.max() > 60

    def test_only_wrong_pixels_change_in_the_pipeline(
        self, bundle: Bundle, truth: np.ndarray
    ) -> None:
        pipeline = Pipeline(bundle, PipelineOptions(threads=1))
        prediction = pipeline(smooth_picture(*FULL), ALL_MAPS, truth)
        assert prediction.dense_labels is not None
        wrong = (truth != IGNORED_LABEL) & (prediction.dense_labels != truth)
        assert np.array_equal(prediction.refined, wrong)
        assert np.array_equal(prediction.labels[~wrong], prediction.dense_labels[~wrong])
        assert (prediction.labels[wrong] != prediction.dense_labels[wrong]).any()

    def test_without_labels(self, bundle: Bundle) -> None:
        pipeline = Pipeline(bundle, PipelineOptions(threads=1))
        with pytest.raises(ConfigurationError, match="expected labelled pictures for the oracle"):
            pipeline(smooth_picture(*FULL))


class TestOracleEnsembler:
    def test_right_wherever_either_is(self, folder: Path) -> None:
        truth = np.random.default_rng(2).integers(0, 3, FULL).astype(np.uint8)
        refiner = yaml.safe_load((folder / BUNDLE_FILE).read_text())["refiner"]
        weights = load_file(folder / "refiner.safetensors")
        extractor = {key: value for key, value in weights.items() if key.startswith("extractor.")}
        save_file(extractor, folder / "refiner.safetensors")
        results = {}
        for kind in ("direct", "oracle"):
            bundle = with_sections(folder, refiner=refiner | {"ensembler": kind})
            picture = smooth_picture(*FULL)
            results[kind] = Pipeline(bundle, PipelineOptions(threads=1))(picture, ALL_MAPS, truth)
        dense, direct = results["direct"].dense_labels, results["direct"].labels
        assert dense is not None
        assert direct is not None
        expected = np.where(dense == truth, dense, direct)
        assert np.array_equal(results["oracle"].labels, expected)
        assert not np.array_equal(expected, direct)
        assert not np.array_equal(expected, dense)


class TestLearnable:
    @pytest.fixture
    def bundle(self, folder: Path) -> Bundle:
        torch.manual_seed(8)
        save_weights(SelectorNet(3), folder / "selector.safetensors")
        selector = {"kind": "learnable", "threshold": 0.5, "file": {"path": "selector.safetensors"}}
        return with_sections(folder, selector=selector)

    def test_is_the_network_s_probability(self, bundle: Bundle) -> None:
        torch.manual_seed(8)
        net, dense = SelectorNet(3), dense_output()
        spec = bundle.spec.dense.input
        image = torch.from_numpy((IMAGE - np.array(spec.mean)) / np.array(spec.std)).float()
        probabilities = dense.logits.softmax(0)
        entropy = -(probabilities * probabilities.log()).sum(0)
        evidence = torch.cat(
            [net.see(image.permute(2, 0, 1)[None])[0], dense.logits, entropy[None]]
        )
        wrong = net.judge(evidence[None])[0, 0].sigmoid().detach()
        found = open_selector(bundle).score(IMAGE, dense, measure_uncertainty(dense.logits))
        torch.testing.assert_close(found, wrong, rtol=1e-4, atol=1e-4)

    def test_its_file_is_verified(self, bundle: Bundle) -> None:
        path = bundle.folder / "selector.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(BundleError, match=r"selector\.safetensors: expected SHA-256"):
            Bundle.open(bundle.folder)

    def test_weights_of_other_classes(self, folder: Path) -> None:
        save_weights(SelectorNet(4), folder / "selector.safetensors")
        selector = {"kind": "learnable", "threshold": 0.5, "file": {"path": "selector.safetensors"}}
        with pytest.raises(BundleError, match="does not fit the selector section"):
            open_selector(with_sections(folder, selector=selector))


class TestInThePipeline:
    def test_budget_and_threshold(self, folder: Path) -> None:
        bundle = with_sections(folder, selector={"kind": "random", "density": 0.5})
        pipeline = Pipeline(bundle, PipelineOptions(threads=1, max_refined_pixels=100))
        prediction = pipeline(smooth_picture(75, 101), ALL_MAPS)
        assert 0 < prediction.refined_pixels <= 100
        assert prediction.budget_hit
        pipeline.max_refined_pixels = None
        assert pipeline(smooth_picture(75, 101)).refined_pixels > 1000
        assert pipeline.entropy_threshold is None

    def test_an_entropy_threshold_for_another_selector_is_refused(self, folder: Path) -> None:
        bundle = with_sections(folder, selector={"kind": "random", "density": 0.5})
        with pytest.raises(ConfigurationError, match="which selects by random, got"):
            Pipeline(bundle, PipelineOptions(threads=1, entropy_threshold=0.5))

    def test_none_brings_the_bundle_s_threshold_back(self, folder: Path) -> None:
        pipeline = Pipeline(Bundle.open(folder), PipelineOptions(threads=1, entropy_threshold=0.2))
        few, wanted = smooth_picture(75, 101), frozenset({Map.REFINED})
        many = pipeline(few, wanted).refined_pixels
        pipeline.entropy_threshold = None
        assert pipeline.entropy_threshold == 1.0
        assert pipeline(few, wanted).refined_pixels < many
