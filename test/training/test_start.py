# SPDX-License-Identifier: Apache-2.0
"""What a refiner takes over from one that was trained for another dense model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import write_pointwise_onnx
from torch import Tensor

from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.errors import BundleError, ConfigurationError
from sparserefine_ros.refiner import Refiner
from sparserefine_ros.training.start import start_from
from sparserefine_ros.weights import save_weights

UNET = {"kind": "unet", "widths": [8, 12], "blocks": 1}


def describe(
    folder: Path,
    *,
    names: str = "abc",
    features: int = 0,
    dense_weight: float = 1.0,
    refiner: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a bundle's description and dense model; the refiner's weights are still missing."""
    folder.mkdir()
    dense: dict[str, Any] = {"file": {"path": "dense.onnx"}, "input": {"scale": 0.5}}
    if features:
        dense["features"] = {"name": "features", "channels": features}
    fields: dict[str, Any] = {
        "name": folder.name,
        "licence": "none",
        "classes": [{"name": name, "colour": [i, 0, 0]} for i, name in enumerate(names)],
        "dense": dense,
        "selector": {"kind": "entropy", "threshold_nats": 0.5},
        "training": training or {},
    }
    if refiner is not None:
        fields["refiner"] = {"file": {"path": "refiner.safetensors"}, **refiner}
    weight = np.full((len(names), 3), dense_weight, np.float32)
    write_pointwise_onnx(folder / "dense.onnx", weight, np.zeros(len(names), np.float32))
    (folder / "bundle.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")


def make_bundle(folder: Path, *, seed: int, **changes: Any) -> tuple[Bundle, Refiner]:
    """A bundle with a refiner from random weights, none of them as it was initialised."""
    refiner_fields = changes.pop("refiner", {**UNET, "inputs": ["rgb", "logits"]})
    describe(folder, refiner=refiner_fields, **changes)
    (folder / "refiner.safetensors").write_bytes(b"")
    bundle = seal_bundle(folder)
    refiner = new_refiner(bundle, seed)
    save_weights(refiner, folder / "refiner.safetensors")
    return seal_bundle(folder), refiner


def new_refiner(bundle: Bundle, seed: int) -> Refiner:
    spec = bundle.spec.refiner
    assert spec is not None
    refiner = Refiner(spec, bundle.spec.refiner_channels(), len(bundle.spec.classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in refiner.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return refiner


def copy_of(refiner: Refiner) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in refiner.state_dict().items()}


def test_the_same_description_takes_all(tmp_path: Path) -> None:
    source, learnt = make_bundle(tmp_path / "source", seed=1)
    bundle, _ = make_bundle(tmp_path / "target", seed=2)
    refiner = new_refiner(bundle, 3)
    assert start_from(refiner, bundle, source) == 1.0
    expected = learnt.state_dict()
    assert all(
        torch.equal(value, expected[key])
        for key, value in refiner.state_dict().items()
        if value.is_floating_point()
    )


def test_dense_features_mean_something_else(tmp_path: Path) -> None:
    """Of a first layer the columns of RGB and logits are taken, wherever they lie."""
    source, learnt = make_bundle(
        tmp_path / "source",
        seed=1,
        features=5,
        refiner={**UNET, "inputs": ["features", "rgb", "logits"]},
    )
    bundle, _ = make_bundle(
        tmp_path / "target",
        seed=2,
        features=4,
        dense_weight=2.0,
        refiner={**UNET, "inputs": ["rgb", "logits", "features"]},
    )
    refiner = new_refiner(bundle, 3)
    before = copy_of(refiner)
    share = start_from(refiner, bundle, source)
    after, given = refiner.state_dict(), learnt.state_dict()
    stem = "extractor.stem.kernel"
    assert torch.equal(after[stem][:, :6], given[stem][:, 5:])
    assert torch.equal(after[stem][:, 6:], before[stem][:, 6:])
    assert all(torch.equal(after[key], given[key]) for key in after if key != stem)
    total = sum(value.numel() for value in after.values() if value.is_floating_point())
    assert share == pytest.approx(1.0 - 9 * 4 * 8 / total)


@pytest.mark.parametrize(
    "changes",
    [{}, {"dense_weight": 2.0, "training": {"dense_start": "source"}}],
    ids=["the same", "trained on"],
)
def test_the_features_of_the_same_dense_model_mean_the_same(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    source, learnt = make_bundle(
        tmp_path / "source", seed=1, features=4, refiner={**UNET, "inputs": ["features", "rgb"]}
    )
    bundle, _ = make_bundle(
        tmp_path / "target",
        seed=2,
        features=4,
        refiner={**UNET, "inputs": ["rgb", "features"]},
        **changes,
    )
    refiner = new_refiner(bundle, 3)
    assert start_from(refiner, bundle, source) == 1.0
    stem = "extractor.stem.kernel"
    after, given = refiner.state_dict()[stem], learnt.state_dict()[stem]
    assert torch.equal(after, torch.cat([given[:, 4:], given[:, :4]], 1))


def test_other_classes_keep_their_own_ends(tmp_path: Path) -> None:
    """With as many classes, but others, whatever has to do with classes stays."""
    source, learnt = make_bundle(tmp_path / "source", seed=1, names="abc")
    bundle, _ = make_bundle(tmp_path / "target", seed=2, names="xyz")
    refiner = new_refiner(bundle, 3)
    before = copy_of(refiner)
    start_from(refiner, bundle, source)
    after, given = refiner.state_dict(), learnt.state_dict()
    stem = "extractor.stem.kernel"
    assert torch.equal(after[stem][:, :3], given[stem][:, :3])
    assert torch.equal(after[stem][:, 3:], before[stem][:, 3:])
    for key in after.keys() - {stem}:
        kept = key.startswith(("extractor.head", "ensembler"))
        assert torch.equal(after[key], before[key] if kept else given[key]), key


def test_pictures_normalised_otherwise(tmp_path: Path) -> None:
    fields = {**UNET, "inputs": ["rgb", "logits"]}
    source, learnt = make_bundle(
        tmp_path / "source", seed=1, refiner={**fields, "channel_order": "BGR"}
    )
    bundle, _ = make_bundle(tmp_path / "target", seed=2, refiner=fields)
    refiner = new_refiner(bundle, 3)
    stem = "extractor.stem.kernel"
    before = copy_of(refiner)[stem]
    start_from(refiner, bundle, source)
    after, given = refiner.state_dict()[stem], learnt.state_dict()[stem]
    assert torch.equal(after[:, :3], before[:, :3])
    assert torch.equal(after[:, 3:], given[:, 3:])


def test_what_has_another_width_stays(tmp_path: Path) -> None:
    source, learnt = make_bundle(tmp_path / "source", seed=1)
    wider = {**UNET, "widths": [8, 16], "inputs": ["rgb", "logits"]}
    bundle, _ = make_bundle(tmp_path / "target", seed=2, refiner=wider)
    refiner = new_refiner(bundle, 3)
    before = copy_of(refiner)
    assert 0.0 < start_from(refiner, bundle, source) < 1.0
    after, given = refiner.state_dict(), learnt.state_dict()
    finest, below = "extractor.levels.before.0.conv1.kernel", "extractor.levels.down.kernel"
    assert torch.equal(after[finest], given[finest])
    assert torch.equal(after[below], before[below])


def test_pointnet(tmp_path: Path) -> None:
    fields = {"kind": "pointnet", "widths": [8, 12], "inputs": ["rgb", "logits"]}
    source, learnt = make_bundle(tmp_path / "source", seed=1, refiner=fields)
    only_rgb = {**fields, "inputs": ["rgb"]}
    bundle, _ = make_bundle(tmp_path / "target", seed=2, refiner=only_rgb)
    refiner = new_refiner(bundle, 3)
    start_from(refiner, bundle, source)
    first = "extractor.alone.0.0.weight"
    assert torch.equal(refiner.state_dict()[first], learnt.state_dict()[first][:, :3])


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "pointnet", "widths": [8], "inputs": ["rgb"]},
        {"kind": "unet", "widths": [10, 14], "blocks": 1, "inputs": ["rgb", "logits"]},
    ],
    ids=["another kind", "other widths"],
)
def test_nothing_fits(tmp_path: Path, fields: dict[str, Any]) -> None:
    source, _ = make_bundle(tmp_path / "source", seed=1, names="abc")
    bundle, _ = make_bundle(tmp_path / "target", seed=2, names="xyz", refiner=fields)
    with pytest.raises(ConfigurationError, match="found none that fits; give the extractor"):
        start_from(new_refiner(bundle, 3), bundle, source)


def test_a_source_without_a_refiner(tmp_path: Path) -> None:
    describe(tmp_path / "source")
    bundle, _ = make_bundle(tmp_path / "target", seed=2)
    with pytest.raises(BundleError, match="source has no refiner; train one"):
        start_from(new_refiner(bundle, 3), bundle, seal_bundle(tmp_path / "source"))
