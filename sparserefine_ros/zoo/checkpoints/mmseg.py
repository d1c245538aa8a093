# SPDX-License-Identifier: Apache-2.0
"""State dicts of MMSegmentation 1.x."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from torch import Tensor

from sparserefine_ros.errors import CheckpointError
from sparserefine_ros.zoo import segformer
from sparserefine_ros.zoo.checkpoints.files import read_state
from sparserefine_ros.zoo.checkpoints.segformer import load_segformer
from sparserefine_ros.zoo.checkpoints.state import Rule, fill, rename, without
from sparserefine_ros.zoo.hamburger import RANK
from sparserefine_ros.zoo.hrnet import HRNet
from sparserefine_ros.zoo.network import DenseNetwork
from sparserefine_ros.zoo.segnext import SegNeXt

Loader = Callable[[int, Mapping[str, Tensor], str], DenseNetwork]

# A head for training only, and the statistics that the network's normalisation has.
_UNUSED: Final = ("auxiliary_head.", "data_preprocessor.")

# SegNeXt's authors nest the depthwise convolution of an MLP; bases are drawn, not learnt.
_SEGNEXT: Final[tuple[Rule, ...]] = ((r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv."),)
_SEGNEXT_UNUSED: Final = ("decode_head.hamburger.ham.",)


def load_mmseg(name: str, classes: int, path: Path) -> DenseNetwork:
    """A network with the weights of an MMSegmentation checkpoint, in evaluation mode.

    Args:
        name: of the network, one of `LOADERS`.
        classes: C.
        path: `.pth` file.

    Raises:
        CheckpointError: the file is unreadable or does not fit, or MMSegmentation's weights
            cannot be brought into this network.
        BackendError: the network needs a package that is not installed.
    """
    loader = LOADERS.get(name)
    if loader is None:
        raise CheckpointError(
            f"expected a network that takes MMSegmentation checkpoints, one of "
            f"{', '.join(LOADERS)}, got {name!r}"
        )
    return loader(classes, without(read_state(path), _UNUSED), str(path)).float().eval()


def _load_hrnet(classes: int, state: Mapping[str, Tensor], source: str) -> DenseNetwork:
    network = HRNet(classes)
    fill(network, state, source=source)
    return network


def _load_segnext(
    classes: int, state: Mapping[str, Tensor], source: str, rank: int
) -> DenseNetwork:
    network = SegNeXt(classes, rank=rank)
    fill(network, rename(without(state, _SEGNEXT_UNUSED), _SEGNEXT), source=source)
    return network


LOADERS: Final[Mapping[str, Loader]] = {
    "hrnet-w48": _load_hrnet,
    **{
        f"segformer-{name}": partial(load_segformer, size=size)
        for name, size in segformer.SIZES.items()
    },
    "segnext-l": partial(_load_segnext, rank=RANK),
    "segnext-l-rank64": partial(_load_segnext, rank=64),
}
