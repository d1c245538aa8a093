# SPDX-License-Identifier: Apache-2.0
"""Hugging Face model folders: `config.json` and weights.

Modules of `transformers` change their names between its releases, their names in files do not. So
weights always go in by file name, through `from_pretrained`, which knows both.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn

from sparserefine_ros.errors import CheckpointError
from sparserefine_ros.image import Normalisation
from sparserefine_ros.zoo.checkpoints.files import read_state
from sparserefine_ros.zoo.checkpoints.state import fill, report, without
from sparserefine_ros.zoo.mask2former import Mask2Former
from sparserefine_ros.zoo.network import DenseNetwork
from sparserefine_ros.zoo.segformer import SegFormer
from sparserefine_ros.zoo.transformer import load_transformers

CONFIG_FILE: Final = "config.json"
_PREPROCESSOR_FILE: Final = "preprocessor_config.json"
# Files with weights, or with the names of such files, best first.
_WEIGHTS_FILES: Final = ("model.safetensors", "pytorch_model.bin")
_INDEX_SUFFIX: Final = ".index.json"
_CLASSIFIER: Final = "class_predictor."
_LOSS: Final = "criterion."


@dataclass(frozen=True)
class HubModel:
    """A network out of a Hugging Face folder.

    Attributes:
        network: with its weights, in evaluation mode.
        class_names: in label order, as the folder has them.
    """

    network: DenseNetwork
    class_names: tuple[str, ...]


def load_hub_folder(folder: Path) -> HubModel:
    """The network of a Hugging Face folder.

    Args:
        folder: holds `config.json`, and `model.safetensors` or `pytorch_model.bin`, or shards of
            one of them with their index.

    Raises:
        CheckpointError: a file is missing or unreadable, the model is of no known type, or the
            weights do not fit it.
        BackendError: `transformers` is not installed.
    """
    fields = _read_json(folder / CONFIG_FILE)
    load = _TYPES.get(str(fields.get("model_type")))
    if load is None:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: expected model_type to be one of {', '.join(_TYPES)}, "
            f"got {fields.get('model_type')!r}"
        )
    state = _read_weights(folder)
    transformers = load_transformers(str(fields["model_type"]))
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, attn_implementation="eager"
        )
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise CheckpointError(f"{folder / CONFIG_FILE} describes no model: {err}") from err
    network = load(config, state, str(folder)).float().eval()
    network.normalisation = _read_normalisation(folder, network.normalisation)
    names = [config.id2label[i] for i in range(config.num_labels)]
    return HubModel(network, _unique(names))


def load_by_file_names(
    model_class: Any, config: Any, state: Mapping[str, Tensor], *, source: str
) -> nn.Module:
    """A model of `transformers` with weights named as in files.

    Args:
        model_class: a class with `from_pretrained`.
        config: its description.
        state: tensors by file name.
        source: where they come from, for the error text.

    Raises:
        CheckpointError: names are missing or unknown, or shapes differ.
    """
    with _quiet(load_transformers(model_class.__name__)):
        model, found = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    missing = _without(found["missing_keys"], _ignored(model, "missing"))
    unknown = _without(found["unexpected_keys"], _ignored(model, "unexpected"))
    mistakes = [f"{key} is missing" for key in missing]
    mistakes += [f"{key} is unknown" for key in unknown]
    mistakes += [
        f"{key}: expected {list(expected)}, got {list(came)}"
        for key, came, expected in sorted(found["mismatched_keys"])
    ]
    mistakes += [
        f"{key} holds NaN or infinity"
        for key, value in sorted(state.items())
        if not torch.isfinite(value).all()
    ]
    report(mistakes, source=source)
    return model  # type: ignore[no-any-return]


def _ignored(model: nn.Module, kind: str) -> set[str]:
    """Patterns of names that any part of a model declares to be of no account.

    `transformers` itself asks the parts next to the model only, so that the Swin backbone of a
    Mask2Former is not heard.
    """
    name = f"_keys_to_ignore_on_load_{kind}"
    return {pattern for part in model.modules() for pattern in getattr(part, name, None) or ()}


def _without(keys: Iterable[str], patterns: set[str]) -> list[str]:
    """Those that match none of the patterns, in order."""
    return sorted(key for key in keys if not any(re.search(each, key) for each in patterns))


def _load_segformer(config: Any, state: Mapping[str, Tensor], source: str) -> DenseNetwork:
    model_class = load_transformers("SegFormer").SegformerForSemanticSegmentation
    return SegFormer(load_by_file_names(model_class, config, state, source=source))


def _load_mask2former(config: Any, state: Mapping[str, Tensor], source: str) -> DenseNetwork:
    # The model with its loss needs SciPy; the model alone and the classifier do not.
    model_class = load_transformers("Mask2Former").Mask2FormerModel
    body = without(state, (_CLASSIFIER, _LOSS))
    model = load_by_file_names(model_class, config, body, source=source)
    network = Mask2Former(model, config.num_labels)
    classifier = {
        key.removeprefix(_CLASSIFIER): value
        for key, value in state.items()
        if key.startswith(_CLASSIFIER)
    }
    fill(network.class_predictor, classifier, source=f"{source}: {_CLASSIFIER}*")
    return network


_TYPES: Final[Mapping[str, Callable[[Any, Mapping[str, Tensor], str], DenseNetwork]]] = {
    "segformer": _load_segformer,
    "mask2former": _load_mask2former,
}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name in _WEIGHTS_FILES:
        whole, index = folder / name, folder / f"{name}{_INDEX_SUFFIX}"
        if whole.is_file():
            return read_state(whole)
        if index.is_file():
            shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
            return {k: value for shard in shards for k, value in read_state(folder / shard).items()}
    raise CheckpointError(
        f"expected one of {', '.join(_WEIGHTS_FILES)} in {folder}, or shards with their "
        f"*{_INDEX_SUFFIX}; found none"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise CheckpointError(f"expected a readable JSON file {path}: {err}") from err
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a mapping, got {type(content).__name__}")
    return content


def _read_normalisation(folder: Path, otherwise: Normalisation) -> Normalisation:
    """What `preprocessor_config.json` says of mean and deviation, brought to the 0-255 scale."""
    path = folder / _PREPROCESSOR_FILE
    if not path.is_file():
        return otherwise
    fields = _read_json(path)
    if not fields.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif fields.get("image_mean") and fields.get("image_std"):
        mean, std = fields["image_mean"], fields["image_std"]
    else:
        return otherwise
    factor = fields.get("rescale_factor") or 1 / 255
    unit = 1.0 / factor if fields.get("do_rescale", True) else 1.0
    red, green, blue = (
        (round(unit * m, 4), round(unit * s, 4)) for m, s in zip(mean, std, strict=True)
    )
    return Normalisation("RGB", (red[0], green[0], blue[0]), (red[1], green[1], blue[1]))


def _unique(names: list[str]) -> tuple[str, ...]:
    """The names, with the label added to those that occur more than once."""
    return tuple(
        name if names.count(name) == 1 else f"{name} {label}" for label, name in enumerate(names)
    )


@contextlib.contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Without progress bars, and without warnings of what is reported as an error here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
