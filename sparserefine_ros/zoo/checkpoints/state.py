# SPDX-License-Identifier: Apache-2.0
"""A state dict into a module, all or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from torch import Tensor, nn

from sparserefine_ros.errors import CheckpointError
from sparserefine_ros.weights import state_differences

# Counted by batch norms in training; older checkpoints lack it, and inference ignores it.
_COUNTER: Final = "num_batches_tracked"
_LISTED: Final = 12

Rule = tuple[str, str]


def rename(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Every key after all rules, each a regular expression and its replacement, in this order."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def without(state: Mapping[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    """The entries whose key begins with none of `prefixes`."""
    unwanted = tuple(prefixes)
    return {key: value for key, value in state.items() if not key.startswith(unwanted)}


def fill(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Fill a module with a state dict that has its very keys and shapes.

    Args:
        module: what is filled.
        state: tensors by name.
        source: where they come from, for the error text.

    Raises:
        CheckpointError: keys are missing or unknown, shapes differ, or values are not finite; the
            text lists them and the module is as it was.
    """
    expected = module.state_dict()
    found = dict(state)
    for key, value in expected.items():
        if key.endswith(_COUNTER):
            found.setdefault(key, value)
    report(state_differences(expected, found), source=source)
    module.load_state_dict(found)


def report(mistakes: Sequence[str], *, source: str) -> None:
    """Raise a CheckpointError that lists the mistakes, if there are any."""
    if mistakes:
        more = f"; and {len(mistakes) - _LISTED} more" if len(mistakes) > _LISTED else ""
        raise CheckpointError(
            f"{source} does not fit the network: {'; '.join(mistakes[:_LISTED])}{more}; "
            "check the network's name and the number of classes"
        )
