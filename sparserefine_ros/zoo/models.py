# SPDX-License-Identifier: Apache-2.0
"""Dense networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.zoo import mask2former, segformer
from sparserefine_ros.zoo.efficientnet import EfficientNetLite
from sparserefine_ros.zoo.hrnet import HRNet
from sparserefine_ros.zoo.ladder import LadderNet
from sparserefine_ros.zoo.network import DenseNetwork
from sparserefine_ros.zoo.segnext import SegNeXt

Builder = Callable[[int], DenseNetwork]


def _build_ladder(classes: int) -> LadderNet:
    """The network of the bundle `street_small`."""
    return LadderNet(EfficientNetLite("lite0"), classes, ladder=64, features=32)


# Those of the paper's table 1 have the paper's sizes.
MODELS: Final[Mapping[str, Builder]] = {
    "ladder-lite0": _build_ladder,
    "hrnet-w48": HRNet,
    **{
        f"segformer-{name}": partial(segformer.build_segformer, size=size)
        for name, size in segformer.SIZES.items()
    },
    "mask2former-t": partial(mask2former.build_mask2former, size=mask2former.SIZES["tiny"]),
    "mask2former-l": partial(mask2former.build_mask2former, size=mask2former.SIZES["large"]),
    "segnext-l": SegNeXt,
    "segnext-l-rank64": partial(SegNeXt, rank=64),
}


def build_model(name: str, classes: int) -> DenseNetwork:
    """A dense network with random weights, in evaluation mode.

    Args:
        name: one of `MODELS`.
        classes: C.

    Raises:
        ConfigurationError: no such network.
        BackendError: the network needs a package that is not installed.
    """
    builder = MODELS.get(name)
    if builder is None:
        raise ConfigurationError(f"expected a dense network of {', '.join(MODELS)}, got {name!r}")
    return builder(classes).eval()
