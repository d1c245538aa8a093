# SPDX-License-Identifier: Apache-2.0
"""The sparse UNet for inference in PyTorch, with batch norm folded.

In each residual block the second norm is folded into the first convolution and its ReLU runs on the
chunk that is still in cache; the second convolution accumulates into the residual stream in place.

Shape legend: N sites of a level. Padded features are [N + 1, channels] with a last row of zeros,
the row that missing links point to.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparserefine_ros.sparse.convolve import apply_gather, stacked_taps, with_none_row
from sparserefine_ros.sparse.norm import SiteNorm
from sparserefine_ros.sparse.plan import Gather, Links, SparsePlan
from sparserefine_ros.sparse.unet import ResidualBlock, SparseConv, SparseUNet, UNetLevel


class _Workspace:
    """Named buffers that live from frame to frame: fresh memory costs a page fault per 4 KiB.

    A slot's content is valid until the slot is taken again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: dict[tuple[str, int], Tensor] = {}

    def take(self, slot: str, rows: int, columns: int, *, depth: int = 0) -> Tensor:
        """Uninitialised float32 [rows, columns]."""
        size = rows * columns
        storage = self._slots.get((slot, depth))
        if storage is None or storage.numel() < size:
            storage = torch.empty(size + size // 4, device=self._device)
            self._slots[slot, depth] = storage
        return storage[:size].view(rows, columns)


@dataclass(frozen=True)
class _Affine:
    """Batch norm with its running statistics: scale * x + shift, both [channels]."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, norm: SiteNorm) -> _Affine:
        return cls(*norm.folded())

    def relu_padded(self, workspace: _Workspace, *parts: Tensor) -> Tensor:
        """max(0, scale * x + shift) of the concatenated parts [N, c_i], padded."""
        count = parts[0].shape[0]
        out = workspace.take("padded", count + 1, self.scale.shape[0])
        out[count] = 0.0
        start = 0
        for part in parts:
            columns = slice(start, start + part.shape[1])
            target = out[:count, columns]
            torch.addcmul(self.shift[columns], part, self.scale[columns], out=target)
            target.relu_()
            start = columns.stop
        return out


class _Conv:
    """A kernel ready for its links: the taps of each gather stacked."""

    def __init__(self, conv: SparseConv, scale: Tensor | None = None) -> None:
        self._kernel = conv.kernel if scale is None else conv.kernel * scale
        self.outputs = self._kernel.shape[2]
        self._stacked: dict[tuple[int, ...], Tensor] = {}

    def weight(self, gather: Gather) -> Tensor:
        if gather.taps not in self._stacked:
            self._stacked[gather.taps] = stacked_taps(self._kernel, gather.taps).contiguous()
        return self._stacked[gather.taps]

    def __call__(self, padded: Tensor, links: Links, out: Tensor) -> Tensor:
        """Padded input -> `out` [links.outputs, outputs]."""
        for gather in links.forward:
            apply_gather(padded, self.weight(gather), gather, out)
        return out


class _Block:
    """A residual block on one or two concatenated inputs."""

    def __init__(self, block: ResidualBlock) -> None:
        norm2 = _Affine.of(block.norm2)
        self._enter = _Affine.of(block.norm1)
        self._conv1 = _Conv(block.conv1, norm2.scale)
        self._bias1 = norm2.shift
        self._conv2 = _Conv(block.conv2)
        shortcut = block.shortcut
        self._shortcut = shortcut.weight.t() if isinstance(shortcut, nn.Linear) else None

    def __call__(
        self, parts: tuple[Tensor, ...], links: Links, workspace: _Workspace, depth: int
    ) -> Tensor:
        """Parts [N, c_i] -> [N, outputs]; a single part without a shortcut is overwritten."""
        padded = self._enter.relu_padded(workspace, *parts)
        gather = links.forward[0]
        inner = workspace.take("inner", links.outputs + 1, self._conv1.outputs)
        inner[links.outputs] = 0.0
        apply_gather(padded, self._conv1.weight(gather), gather, inner, bias=self._bias1)
        out = self._residual(parts, workspace, depth)
        apply_gather(inner, self._conv2.weight(gather), gather, out, accumulate=True)
        return out

    def _residual(self, parts: tuple[Tensor, ...], workspace: _Workspace, depth: int) -> Tensor:
        if self._shortcut is None:
            return parts[0]
        weights = torch.split(self._shortcut, [part.shape[1] for part in parts])
        out = workspace.take("merged", parts[0].shape[0], self._conv2.outputs, depth=depth)
        torch.mm(parts[0], weights[0], out=out)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            out.addmm_(part, weight)
        return out


class _Level:
    """Blocks of one resolution around everything below it."""

    def __init__(self, level: UNetLevel) -> None:
        self._before = [_Block(block) for block in level.before]  # type: ignore[arg-type]
        self._below = None
        if level.below is not None:
            self._below = _Level(level.below)
            self._down_enter, self._down = _Affine.of(level.down_norm), _Conv(level.down)
            self._up_enter, self._up = _Affine.of(level.up_norm), _Conv(level.up)
            self._after = [_Block(block) for block in level.after]  # type: ignore[arg-type]

    def __call__(
        self, x: Tensor, plan: SparsePlan, workspace: _Workspace, depth: int = 0
    ) -> Tensor:
        """[N, width] -> [N, width] on the sites of `plan.levels[depth]`; may overwrite `x`."""
        here = plan.levels[depth]
        for block in self._before:
            x = block((x,), here.same, workspace, depth)
        if self._below is None or here.down is None:
            return x
        deep = workspace.take("stream", here.down.outputs, self._down.outputs, depth=depth + 1)
        self._down(self._down_enter.relu_padded(workspace, x), here.down, deep)
        deep = self._below(deep, plan, workspace, depth + 1)
        up = workspace.take("up", here.count, self._up.outputs, depth=depth)
        self._up(self._up_enter.relu_padded(workspace, deep), here.down.reversed(), up)
        parts: tuple[Tensor, ...] = (x, up)
        for block in self._after:
            parts = (block(parts, here.same, workspace, depth),)
        return parts[0]


class PyTorchUNet:
    """Folded copy of a trained `SparseUNet`; same results within rounding, no gradients.

    Runs on the device of the UNet's weights, where it expects features and plan. Not re-entrant:
    calls share one set of buffers.
    """

    def __init__(self, unet: SparseUNet) -> None:
        self._workspace = _Workspace(unet.head.weight.device)
        unet = copy.deepcopy(unet)
        with torch.no_grad():
            self._stem = _Conv(unet.stem)
            self._levels = _Level(unet.levels)
            self._exit = _Affine.of(unet.norm)
            self._head, self._bias = unet.head.weight.t().contiguous(), unet.head.bias.detach()

    @torch.inference_mode()
    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C]."""
        workspace, links = self._workspace, plan.levels[0].same
        stream = workspace.take("stream", links.outputs, self._stem.outputs)
        self._stem(with_none_row(features), links, stream)
        x = self._levels(stream, plan, workspace)
        return torch.addmm(self._bias, self._exit.relu_padded(workspace, x)[:-1], self._head)
