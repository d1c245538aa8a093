# SPDX-License-Identifier: Apache-2.0
"""The sparse UNet on SpConv, for comparison.

SpConv builds its own tables from the coordinates, once for each resolution. Its strided convolution
needs whole windows inside the picture, so it runs plans whose bounds are the image. On the CPU it
gives wrong results with more than one thread (a data race in its 2.3.8), so one is what it gets.

Shape legend: N sites of the finest level; C classes.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

from sparserefine_ros.errors import BackendError
from sparserefine_ros.sparse.norm import SiteNorm
from sparserefine_ros.sparse.plan import SparsePlan
from sparserefine_ros.sparse.unet import ResidualBlock, SparseConv, SparseUNet, UNetLevel

# One changes the number of threads at a time, so that none takes another's for the usual one.
_RUNNING: Final = threading.Lock()


def _library() -> Any:
    try:
        import spconv.pytorch as library
    except ImportError as err:
        raise BackendError(
            f"expected the package spconv for the engine spconv ({err}); pip install spconv"
        ) from err
    return library


class SpConvUNet:
    """A trained `SparseUNet` on SpConv's convolutions; same results within rounding.

    Args:
        unet: trained weights.
        threads: of the whole process while it runs; more than one is wrong, see the module.
            Afterwards it has as many as when this was made.

    Raises:
        BackendError: SpConv is not installed, or not for the device of the weights.
    """

    def __init__(self, unet: SparseUNet, *, threads: int = 1) -> None:
        library = _library()
        _check_device(unet.stem.kernel.device)
        self._library, self._threads = library, threads
        self._usual_threads = torch.get_num_threads()
        self._stem = _convolution(library.SubMConv2d, unet.stem, key="same 0")
        self._levels = _Level(library, unet.levels, 0)
        self._exit = _Activation(unet.norm)
        self._head = unet.head

    @torch.no_grad()
    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C].

        Raises:
            BackendError: the bounds of the plan are not the image.
        """
        _check_bounds(plan)
        level = plan.levels[0]
        if level.count == 0:
            return features.new_zeros(0, self._head.out_features)
        batch, height, width = level.grid
        picture, place = level.sites // (height * width), level.sites % (height * width)
        indices = torch.stack([picture, place // width, place % width], 1).int()
        # Its kernels run on the current device.
        there = torch.cuda.device(features.device) if features.is_cuda else nullcontext()
        with _RUNNING, there:
            torch.set_num_threads(self._threads)
            try:
                x = self._library.SparseConvTensor(features, indices, (height, width), batch)
                x = self._levels(self._stem(x), plan)
                return self._head(self._exit(x).features)  # type: ignore[no-any-return]
            finally:
                torch.set_num_threads(self._usual_threads)


def _check_device(device: torch.device) -> None:
    from spconv.cppconstants import CPU_ONLY_BUILD

    if CPU_ONLY_BUILD and device.type != "cpu":
        raise BackendError(
            f"expected a SpConv built for {device.type}, this one is for the CPU only; "
            "pip uninstall spconv && pip install spconv-cu120"
        )


def _check_bounds(plan: SparsePlan) -> None:
    for level, below in zip(plan.levels, plan.levels[1:], strict=False):
        expected = tuple(max(0, (side - 1) // 2) for side in level.grid[1:])
        if below.grid[1:] != expected:
            raise BackendError(
                f"expected a plan with image bounds for SpConv, got a level of {below.grid[1:]} "
                f"below one of {level.grid[1:]}; build the plan with bounds 'image'"
            )


def _convolution(kind: Any, conv: SparseConv, *, key: str, **options: Any) -> Any:
    """A convolution of SpConv's with our weights; those that share a key share their table."""
    from spconv.core import ConvAlgo

    _, inputs, outputs = conv.kernel.shape
    device = conv.kernel.device
    if device.type == "cpu":
        options["algo"] = ConvAlgo.Native  # a build for GPUs would take one of theirs
    made = kind(inputs, outputs, 3, bias=False, indice_key=key, **options).to(device).eval()
    # Ours are numbered with the row tap fastest, SpConv's are [outputs, row, column, inputs].
    weight = conv.kernel.detach().view(3, 3, inputs, outputs).permute(3, 1, 0, 2)
    made.weight.data.copy_(weight)
    return made


class _Activation:
    def __init__(self, norm: SiteNorm) -> None:
        self._scale, self._shift = norm.folded()

    def __call__(self, x: Any) -> Any:
        return x.replace_feature((x.features * self._scale + self._shift).relu_())


class _Block:
    def __init__(self, library: Any, block: nn.Module, depth: int) -> None:
        assert isinstance(block, ResidualBlock)
        self._enter, self._middle = _Activation(block.norm1), _Activation(block.norm2)
        self._conv1, self._conv2 = (
            _convolution(library.SubMConv2d, conv, key=f"same {depth}")
            for conv in (block.conv1, block.conv2)
        )
        self._shortcut = block.shortcut

    def __call__(self, x: Any) -> Any:
        y = self._conv2(self._middle(self._conv1(self._enter(x))))
        return y.replace_feature(y.features + self._shortcut(x.features))


class _Level:
    def __init__(self, library: Any, level: UNetLevel, depth: int) -> None:
        self._depth = depth
        self._before = [_Block(library, block, depth) for block in level.before]
        self._below: _Level | None = None
        if level.below is not None:
            self._below = _Level(library, level.below, depth + 1)
            self._down_enter, self._up_enter = (
                _Activation(norm) for norm in (level.down_norm, level.up_norm)
            )
            key = f"down {depth}"
            self._down = _convolution(library.SparseConv2d, level.down, key=key, stride=2)
            self._up = _convolution(library.SparseInverseConv2d, level.up, key=key)
            self._after = [_Block(library, block, depth) for block in level.after]

    def __call__(self, x: Any, plan: SparsePlan) -> Any:
        for block in self._before:
            x = block(x)
        if self._below is None:
            return x
        if plan.levels[self._depth + 1].count:
            deep = self._below(self._down(self._down_enter(x)), plan)
            up = self._up(self._up_enter(deep)).features
        else:
            up = x.features.new_zeros(len(x.features), self._up.out_channels)
        x = x.replace_feature(torch.cat([x.features, up], 1))
        for block in self._after:
            x = block(x)
        return x
