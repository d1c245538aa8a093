# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training on disk."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, Final

import torch

from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.files import write_whole

LAST: Final = "last.pt"
BEST: Final = "best.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state whole or not at all.

    Raises:
        SparseRefineError: the file cannot be written.
    """
    # In memory first: PyTorch's own file writer hides why the disk refused.
    content = BytesIO()
    torch.save(state, content)
    write_whole(path, content.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        SparseRefineError: the file cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # PyTorch raises whatever the damage leads to
        raise SparseRefineError(
            f"cannot read {path} as a checkpoint; restore the file, or train anew in another folder"
        ) from err
    return state
