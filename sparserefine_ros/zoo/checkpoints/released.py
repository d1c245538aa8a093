# SPDX-License-Identifier: Apache-2.0
"""Refiners as the authors of SparseRefine train and release them: Lightning checkpoints.

Their sparse UNet is a nest of unnamed sequences. A level holds, numbered through: its residual
blocks, each followed by an addition; one table of skip and way down; a concatenation; its blocks
again. In a table, 0 is the shortcut and 1 the other branch. Kernels have this package's layout
[tap, inputs, outputs], but for those of 1x1 convolutions, [inputs, outputs].

Their pictures are read as RGB and then swapped, while mean and deviation stay those of RGB: such a
refiner takes BGR pixels normalised with RGB statistics, and that is what the description says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from sparserefine_ros.bundle_spec import FileSpec, UNetRefinerSpec
from sparserefine_ros.errors import CheckpointError
from sparserefine_ros.refiner import Refiner
from sparserefine_ros.zoo.checkpoints.files import read_state
from sparserefine_ros.zoo.checkpoints.state import fill

_PREFIX: Final = "model."
_STEM: Final = "backbone.net.0"
_LEVELS: Final = "backbone.net.1"

# Parts outside the levels, and the parts of a table's longer branch, by their names here.
_OUTSIDE: Final = {
    _STEM: "extractor.stem",
    "backbone.net.2": "extractor.norm",
    "classifier": "extractor.head",
    "ensembler.attn.0": "ensembler.gate.0",
    "ensembler.attn.2": "ensembler.gate.2",
    "ensembler.fuser.0": "ensembler.mix.0",
    "ensembler.fuser.2": "ensembler.mix.2",
}
_BLOCK: Final = {"0": "norm1", "2": "conv1", "3": "norm2", "5": "conv2"}
_DOWN_AND_UP: Final = {"0": "down_norm", "2": "down", "4": "up_norm", "6": "up"}
_BELOW: Final = "3"


def load_released_refiner(
    path: Path, classes: int, *, file: FileSpec
) -> tuple[Refiner, UNetRefinerSpec]:
    """A refiner with the weights of a Lightning checkpoint, and its description for a bundle.

    Widths and blocks are taken from the checkpoint.

    Args:
        path: `.ckpt` file.
        classes: C.
        file: where the description shall say that the weights lie.

    Raises:
        CheckpointError: the file is unreadable, or holds something else than such a refiner.
    """
    state = {
        key.removeprefix(_PREFIX): value
        for key, value in read_state(path).items()
        if key.startswith(_PREFIX)
    }
    widths, blocks = _measure(state, path)
    spec = UNetRefinerSpec(
        file=file,
        widths=widths,
        blocks=blocks,
        bounds="data",
        channel_order="BGR",
    )
    refiner = Refiner(spec, 3, classes)
    names = {**_OUTSIDE, **dict(_level_names(_LEVELS, "extractor.levels", len(widths), blocks))}
    fill(refiner, dict(_renamed(state, names)), source=str(path))
    return refiner.float().eval(), spec


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        part, _, field = key.rpartition(".")
        name = names.get(part)
        if name is None:
            yield key, value
        elif name.endswith(".shortcut") and field == "kernel":
            yield f"{name}.weight", value.t().contiguous()
        else:
            yield f"{name}.{field}", value


def _level_names(theirs: str, ours: str, depth: int, blocks: int) -> Iterator[tuple[str, str]]:
    """Names of the parts of a level and of all below it, theirs and ours."""
    table = 2 * blocks
    for i in range(blocks):
        yield from _block_names(f"{theirs}.{2 * i}", f"{ours}.before.{i}")
        yield from _block_names(f"{theirs}.{table + 2 + 2 * i}", f"{ours}.after.{i}")
    for number, name in _DOWN_AND_UP.items():
        yield f"{theirs}.{table}.1.{number}", f"{ours}.{name}"
    if depth > 1:
        below = f"{theirs}.{table}.1.{_BELOW}"
        yield from _level_names(below, f"{ours}.below", depth - 1, blocks)


def _block_names(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.0", f"{ours}.shortcut"
    for number, name in _BLOCK.items():
        yield f"{theirs}.1.{number}", f"{ours}.{name}"


def _measure(state: Mapping[str, Tensor], path: Path) -> tuple[tuple[int, ...], int]:
    """Widths of the levels, and blocks on each side of a level."""
    stem = state.get(f"{_STEM}.kernel")
    blocks = 0
    while f"{_LEVELS}.{2 * blocks}.1.5.kernel" in state:
        blocks += 1
    if stem is None or stem.dim() != 3 or blocks == 0:
        shown = ", ".join(f"{_PREFIX}{key}" for key in list(state)[:3]) or f"none named {_PREFIX}*"
        raise CheckpointError(
            f"{path}: expected a refiner of the SparseRefine release, with tensors "
            f"{_PREFIX}{_STEM}.kernel and {_PREFIX}{_LEVELS}.0.1.5.kernel; got {shown}"
        )
    widths, level = [stem.shape[2]], _LEVELS
    while (down := state.get(f"{level}.{2 * blocks}.1.2.kernel")) is not None:
        widths.append(down.shape[-1])
        level = f"{level}.{2 * blocks}.1.{_BELOW}"
    return tuple(widths), blocks
