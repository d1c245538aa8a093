# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files, read without running what they contain.

A `.pth` or `.ckpt` file is a pickle, which may name any function to be called. PyTorch's
weights-only reader refuses all but tensors and plain containers; training frameworks, however, put
their configuration and logs beside the weights. Here those objects are replaced by an inert
stand-in, and only tensors are returned.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparserefine_ros.errors import BackendError, CheckpointError


class _StandIn:
    """Takes the place of every foreign object: accepts whatever it is made of, keeps nothing."""

    def __new__(cls, *arguments: object, **named: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stand_in_list(*arguments: object) -> list[object]:
    """For classes that pickle appends to."""
    return []


def _stand_in_dict(*arguments: object) -> dict[object, object]:
    """For classes that pickle sets items of."""
    return {}


# Magic number, version, system, content.
_PICKLES_OF_OLD_FILES: Final = 4
_CONTAINERS: Final[Mapping[str, Callable[..., Any]]] = {
    "collections.deque": _stand_in_list,
    "collections.defaultdict": _stand_in_dict,
}
_ADVICE: Final = ("Weights only load failed", "Check the documentation", "(1)", "(2)")


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name.

    Args:
        path: `.safetensors`, or a file of `torch.save` that holds a state dict, possibly under
            the key `state_dict`.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no state dict.
        BackendError: PyTorch is too old to read it.
    """
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint file, found none at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as err:
            raise CheckpointError(f"{path} is not a readable safetensors file: {err}") from err
    return _tensors(_load_pickle(path), path)


def _load_pickle(path: Path) -> object:
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        raise BackendError(
            f"reading {path} needs PyTorch 2.6 or newer, got {torch.__version__}; "
            "install it: pip install 'torch>=2.6'"
        )
    try:
        foreign = _named_objects(path)
        allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (_CONTAINERS.get(name, _StandIn), name) for name in foreign
        ]
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as err:
        raise CheckpointError(
            f"{path} cannot be read as plain weights: {_reason(err)}; if it is whole and you trust "
            "it, save its state dict alone where it was trained: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        ) from err


def _named_objects(path: Path) -> Iterable[str]:
    """Classes and functions that a file names, at least those PyTorch would not take."""
    if zipfile.is_zipfile(path):
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    # Before PyTorch 1.6, and in what OpenMMLab publishes, pickles simply follow each other.
    with path.open("rb") as stream:
        return {
            _name_in_python_3(*str(argument).split(" ", 1))
            for _ in range(_PICKLES_OF_OLD_FILES)
            for opcode, argument, _ in pickletools.genops(stream)
            if opcode.name == "GLOBAL"
        }


def _name_in_python_3(module: str, name: str) -> str:
    """Old pickles name things as Python 2 did; PyTorch looks for what they are called now."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _reason(err: BaseException) -> str:
    """What PyTorch says of the file, without its advice."""
    lines = [line.strip() for line in str(err).splitlines()]
    said = [line for line in lines if line and not line.startswith(_ADVICE)]
    return said[0] if said else type(err).__name__


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{path}: expected a state dict, or a mapping with one under 'state_dict', "
            f"got {type(state).__name__}"
        )
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(repr(str(key)) for key in list(state)[:5]) or "nothing"
        raise CheckpointError(f"{path}: expected tensors by name, got {keys}")
    return tensors
