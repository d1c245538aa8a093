# SPDX-License-Identifier: Apache-2.0
"""What the sparse engines are timed on: UNets, and masks of a bundle's dense model.

A mask is where the dense model is least sure of a procedural street of 2048 x 1024.

Shape legend: N sites of the finest level; C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.stage import open_dense_stage
from sparserefine_ros.errors import BackendError
from sparserefine_ros.evaluation.bench import street_pictures
from sparserefine_ros.evaluation.cost import count_unet_macs
from sparserefine_ros.kernels.library import PYTORCH, kernels_from
from sparserefine_ros.records import Selection
from sparserefine_ros.refiner import load_refiner
from sparserefine_ros.selection import select_above
from sparserefine_ros.sparse.engines import has_triton
from sparserefine_ros.sparse.plan import SparsePlan, build_plan
from sparserefine_ros.sparse.unet import SparseUNet

SIZE: Final = (1024, 2048)
DENSITIES: Final = (0.034, 0.069, 0.118, 0.19)

# Widths and blocks by name; the paper's is the reference.
SIZES: Final[Mapping[str, tuple[tuple[int, ...], int]]] = {
    "small": ((16, 32, 64, 96, 128), 2),
    "reference": ((32, 64, 128, 256, 512, 1024), 2),
}
BUNDLE_UNET: Final = "bundle"
UNETS: Final = (BUNDLE_UNET, *SIZES)


class Case:
    """A UNet on a mask, and what it shall say.

    Attributes:
        name: of the UNet.
        unet: in evaluation mode, on the plan's device, like features and logits.
        density: share of the picture that was asked for, 0 .. 1.
        plan: of the mask.
        sites: N.
        features: float32 [N, inputs], random.
        flop: operations of one call; two for each multiplication of an existing pair.
        expected: the training network's logits [N, C], on PyTorch.
    """

    def __init__(self, name: str, unet: SparseUNet, density: float, plan: SparsePlan) -> None:
        self.name, self.density, self.plan = name, density, plan
        self.sites, device = plan.levels[0].count, plan.levels[0].sites.device
        generator = torch.Generator().manual_seed(0)
        channels = unet.stem.kernel.shape[1]
        features = torch.randn(self.sites, channels, generator=generator)
        self.flop = 2 * count_unet_macs(unet, plan)
        # On the CPU, also of a GPU, and by kernels that are not timed here.
        cpu = torch.device("cpu")
        with torch.inference_mode(), kernels_from(PYTORCH):
            expected = unet.to(cpu)(features, plan.to(cpu))
        self.unet, self.features = unet.to(device), features.to(device)
        self.expected = expected.to(device)

    def error_of(self, logits: Tensor) -> float:
        """Rms difference over the rms of what was expected."""
        difference = (logits - self.expected).square().mean().sqrt()
        return float(difference / self.expected.square().mean().sqrt())

    def train_once(self) -> None:
        """Forwards and backwards in training mode."""
        self.unet.train()
        plan = self.plan.to(self.features.device)  # without the tiles that a step before has found
        self.unet(self.features, plan).square().mean().backward()
        self.unet.zero_grad()
        self.unet.eval()

    @property
    def training_flop(self) -> int:
        """Operations of `train_once`: the stem needs no gradient of its input."""
        stem = 2 * self.plan.levels[0].same.pairs() * self.unet.stem.kernel[0].numel()
        return 3 * self.flop - stem


def make_unet(name: str, bundle: Bundle) -> SparseUNet:
    """The bundle's UNet with its weights, or one of the named sizes with random ones.

    Raises:
        BackendError: the bundle has no sparse UNet.
    """
    if name == BUNDLE_UNET:
        extractor = load_refiner(bundle).extractor
        if not isinstance(extractor, SparseUNet):
            raise BackendError(
                f"expected a bundle with a sparse UNet, {bundle.name} has another extractor; "
                f"time one of {', '.join(SIZES)}"
            )
        return extractor.eval()
    widths, blocks = SIZES[name]
    torch.manual_seed(0)
    unet = SparseUNet(3, len(bundle.class_names), widths=widths, blocks=blocks)
    for part in unet.modules():
        if isinstance(part, nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)
    return unet.eval()


def street_mask(bundle: Bundle, density: float, size: tuple[int, int], threads: int) -> Selection:
    """The blocks of highest entropy."""
    (picture,) = street_pictures(size, count=1)
    entropy = open_dense_stage(bundle, threads=threads)(picture).uncertainty.entropy
    threshold = -1.0 if density >= 1.0 else float(np.quantile(entropy.numpy(), 1.0 - density))
    return select_above(entropy, size, threshold=threshold)


def plan_maker(mask: Selection, depth: int, device: torch.device) -> Callable[[], SparsePlan]:
    """What makes the plan of a mask, in the way of the pipeline.

    Args:
        mask: the sites.
        depth: levels.
        device: where the plan is wanted; on a GPU it comes from the mask at low resolution, where
            Triton is installed, else from the sites.
    """
    if device.type != "cpu" and has_triton():
        from sparserefine_ros.triton_kernels.topology import plan_from_mask

        small = mask.low_res_mask.to(device)[None]
        return functools.partial(plan_from_mask, small, depth, full_size=mask.full_size)
    sites = mask.pixels.to(device)
    return functools.partial(build_plan, sites, (1, *mask.full_size), depth)
