# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders, as `transformers` itself writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from zoo.small_models import MASK2FORMER, SWIN

from sparserefine_ros.errors import CheckpointError
from sparserefine_ros.zoo import mask2former, segformer
from sparserefine_ros.zoo.checkpoints.hub import load_hub_folder

transformers = pytest.importorskip("transformers")

CLASSES = 5
SEGFORMER = segformer.Size((8, 16, 24, 32), (1, 1, 1, 2), 16)


def picture() -> Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(9))


def write_segformer(folder: Path, **fields: object) -> torch.nn.Module:
    torch.manual_seed(2)
    config = segformer.segformer_config(CLASSES, SEGFORMER)
    for key, value in fields.items():
        setattr(config, key, value)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(folder)
    return model


def write_mask2former(folder: Path) -> mask2former.Mask2Former:
    """The layout of a saved Mask2FormerForUniversalSegmentation, whose class needs SciPy."""
    torch.manual_seed(2)
    network = mask2former.build_mask2former(CLASSES, SWIN, **MASK2FORMER).eval()
    network.model.config.num_labels = CLASSES
    network.model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    state = {f"model.{key}": value for key, value in load_file(weights).items()}
    classifier = network.class_predictor.state_dict()
    state |= {f"class_predictor.{key}": value for key, value in classifier.items()}
    state["criterion.empty_weight"] = torch.ones(CLASSES + 1)
    save_file(state, weights)
    return network


def edit_state(folder: Path, **changes: Tensor | None) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    save_file(state, path)


def test_segformer_equals_the_model_that_was_saved(tmp_path: Path) -> None:
    labels = {0: "road", 1: "car", 2: "sky", 3: "car", 4: "pole"}
    model = write_segformer(tmp_path, id2label=labels)
    found = load_hub_folder(tmp_path)
    assert found.class_names == ("road", "car 1", "sky", "car 3", "pole")
    assert not found.network.training
    with torch.no_grad():
        expected = model(picture()).logits
        assert torch.equal(found.network(picture()), expected)
    assert expected.std() > 0


def test_mask2former_equals_the_model_that_was_saved(tmp_path: Path) -> None:
    network = write_mask2former(tmp_path)
    found = load_hub_folder(tmp_path)
    assert found.network.output_kind == "probabilities"
    assert len(found.class_names) == CLASSES
    with torch.no_grad():
        torch.testing.assert_close(found.network(picture()), network(picture()))


def test_mask2former_as_transformers_4_saved_it(tmp_path: Path) -> None:
    """Its Swin had no last norm, which counts for nothing, and saved what it can compute."""
    network = write_mask2former(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    norms = [key for key in state if ".swin.layernorm." in key]
    assert len(norms) == 2
    biases = [key for key in state if key.endswith("relative_position_bias_table")]
    for key in norms:
        del state[key]
    for key in biases:
        index = key.replace("bias_table", "index")
        state[index] = torch.zeros(4, 4, dtype=torch.int64)
    save_file(state, tmp_path / "model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(load_hub_folder(tmp_path).network(picture()), network(picture()))
    state["pixel_level_module.encoder.mystery"] = torch.zeros(1)
    del state[biases[0]]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as told:
        load_hub_folder(tmp_path)
    assert "bias_table is missing" in str(told.value)
    assert "mystery is unknown" in str(told.value)


@pytest.mark.parametrize(
    ("fields", "mean", "std"),
    [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}, (127.5, 102, 76.5),
         (25.5, 51, 76.5)),
        ({"image_mean": [9, 8, 7], "image_std": [1, 2, 3], "do_rescale": False}, (9, 8, 7),
         (1, 2, 3)),
        ({"do_normalize": False}, (0, 0, 0), (255, 255, 255)),
        ({"image_mean": None, "image_std": None, "rescale_factor": None},
         (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        (None, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ],
    ids=["scaled", "bytes", "none", "null", "no-file"],
)  # fmt: skip
def test_normalisation_on_the_byte_scale(
    tmp_path: Path,
    fields: dict[str, object] | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    write_segformer(tmp_path)
    if fields is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    found = load_hub_folder(tmp_path).network.normalisation
    assert found.channel_order == "RGB"
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)


def test_shards(tmp_path: Path) -> None:
    model = write_segformer(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    with torch.no_grad():
        outputs = [
            load_hub_folder(tmp_path / name).network(picture()) for name in ("whole", "parts")
        ]
    assert torch.equal(*outputs)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    model = write_segformer(tmp_path)
    model.half().save_pretrained(tmp_path)
    network = load_hub_folder(tmp_path).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_mistakes_are_listed_together(tmp_path: Path) -> None:
    write_segformer(tmp_path)
    edit_state(
        tmp_path,
        **{
            "decode_head.classifier.bias": None,
            "decode_head.linear_fuse.weight": torch.zeros(16, 60, 1, 1),
            "strange.weight": torch.zeros(1),
            "decode_head.batch_norm.weight": torch.full((16,), torch.nan),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        load_hub_folder(tmp_path)
    for part in (
        "decode_head.classifier.bias is missing",
        "decode_head.linear_fuse.weight: expected [16, 64, 1, 1], got [16, 60, 1, 1]",
        "strange.weight is unknown",
        "decode_head.batch_norm.weight holds NaN",
    ):
        assert part in str(caught.value)


def test_a_mask2former_without_classifier(tmp_path: Path) -> None:
    write_mask2former(tmp_path)
    edit_state(tmp_path, **{"class_predictor.weight": None})
    with pytest.raises(CheckpointError, match=r"class_predictor.*weight is missing"):
        load_hub_folder(tmp_path)


def test_folders_from_before_safetensors(tmp_path: Path) -> None:
    write_segformer(tmp_path)
    expected = load_hub_folder(tmp_path).network.state_dict()
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for part, keys in parts.items():
        torch.save({key: state[key] for key in keys}, tmp_path / part)
    places = {key: part for part, keys in parts.items() for key in keys}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert_same(load_hub_folder(tmp_path).network.state_dict(), expected)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"expected one of .*pytorch_model.bin.*found none"):
        load_hub_folder(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(load_hub_folder(tmp_path).network.state_dict(), expected)


def assert_same(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "expected a readable JSON file"),
        ("{", "expected a readable JSON file"),
        ("[1]", "expected a mapping, got list"),
        (
            '{"model_type": "bert"}',
            "expected model_type to be one of segformer, mask2former, got 'bert'",
        ),
    ],
    ids=["missing", "cut", "list", "other"],
)
def test_wrong_descriptions(tmp_path: Path, text: str | None, match: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=match):
        load_hub_folder(tmp_path)
