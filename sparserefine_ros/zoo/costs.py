# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates (MACs) of networks, counted without computing.

One MAC is a multiplication with its addition, in a convolution or matrix product, as in
`sparserefine_ros.evaluation.cost`. Networks are built and run on tensors that have a shape and no
values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from sparserefine_ros.bundle_spec import FileSpec, UNetRefinerSpec
from sparserefine_ros.evaluation.cost import count_parameters, count_refiner_macs
from sparserefine_ros.refiner import Refiner
from sparserefine_ros.sparse.plan import SparsePlan
from sparserefine_ros.zoo.models import build_model

_FLOP_PER_MAC: Final = 2


@dataclass(frozen=True)
class Cost:
    """What a network costs on one picture.

    Attributes:
        parameters: trainable values.
        macs: multiply-accumulates.
    """

    parameters: int
    macs: int


def count_networks(
    name: str, sizes: Sequence[tuple[int, int]], *, classes: int
) -> dict[tuple[int, int], Cost]:
    """Cost of a network of the zoo at each input size (h, w).

    Raises:
        ConfigurationError: no such network.
        BackendError: the network needs a package that is not installed.
    """
    with FakeTensorMode():
        network = build_model(name, classes)
        return {size: Cost(count_parameters(network), _count_macs(network, size)) for size in sizes}


def _count_macs(network: nn.Module, size: tuple[int, int]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, *size))
    return int(counter.get_total_flops()) // _FLOP_PER_MAC


def count_reference_refiner(widths: Sequence[int], plan: SparsePlan, *, classes: int) -> Cost:
    """Cost of the paper's refiner, with two blocks and the gated ensembler, on given sites.

    Args:
        widths: channels of the levels.
        plan: of as many levels.
        classes: C.
    """
    spec = UNetRefinerSpec(file=FileSpec(path="none"), widths=tuple(widths))
    with torch.device("meta"):
        refiner = Refiner(spec, 3, classes)
    return Cost(count_parameters(refiner), count_refiner_macs(refiner, plan))
