# SPDX-License-Identifier: Apache-2.0
"""Weights of the networks in a bundle, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sparserefine_ros.errors import BundleError
from sparserefine_ros.files import write_whole


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's weights; `path` is replaced only once the file is whole.

    Raises:
        SparseRefineError: the file cannot be written.
    """
    write_whole(path, save({key: value.contiguous() for key, value in module.state_dict().items()}))


def load_weights(module: nn.Module, path: Path, *, section: str) -> None:
    """Fill a module with weights that `save_weights` wrote.

    Args:
        module: what is filled.
        path: safetensors file.
        section: of `bundle.yaml`, for the error text.

    Raises:
        BundleError: the file is unreadable, or does not fit the module.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as err:
        raise BundleError(f"{path} is not a readable safetensors file: {err}") from err
    mistakes = state_differences(module.state_dict(), weights)
    if mistakes:
        raise BundleError(
            f"{path} does not fit the {section} section of bundle.yaml: {'; '.join(mistakes[:5])}"
            f"{f' and {len(mistakes) - 5} more' if len(mistakes) > 5 else ''}"
        )
    module.load_state_dict(weights)


def state_differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Where `found` does not fit a module with state dict `expected`, a line for each key."""
    mistakes = []
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            mistakes.append(f"{key} is missing")
        elif key not in expected:
            mistakes.append(f"{key} is unknown")
        elif expected[key].shape != found[key].shape:
            mistakes.append(
                f"{key}: expected {list(expected[key].shape)}, got {list(found[key].shape)}"
            )
        elif not torch.isfinite(found[key]).all():
            mistakes.append(f"{key} holds NaN or infinity")
        elif key.endswith("running_var") and (found[key] < 0).any():
            mistakes.append(f"{key} holds a variance below 0")
    return mistakes
