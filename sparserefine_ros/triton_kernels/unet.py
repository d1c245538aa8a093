# SPDX-License-Identifier: Apache-2.0
"""The sparse UNet for inference on a CUDA GPU, with batch norm folded.

As in `sparse.compiled`, the CPU twin, each convolution writes its raw result, where a residual or a
shortcut will read it, and what the next norm and ReLU make of it. So kernels read their input as it
is, without a norm of their own on every gathered row. A concatenation is one buffer that two
convolutions fill side by side.

Shape legend: N sites of a level; C classes. Features are [N, channels] in the engine's precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from triton.errors import TritonError

from sparserefine_ros.errors import BackendError, DeviceMemoryError
from sparserefine_ros.sparse.convolve import pick_taps
from sparserefine_ros.sparse.norm import SiteNorm
from sparserefine_ros.sparse.plan import Links, SparsePlan
from sparserefine_ros.sparse.unet import ResidualBlock, SparseUNet, UNetLevel
from sparserefine_ros.triton_kernels.convolution import Activation, Weights, convolve, take
from sparserefine_ros.triton_kernels.runtime import check_device

Precision = Literal["fp16", "bf16", "fp32"]
_DTYPES: Final[Mapping[Precision, torch.dtype]] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}


# Where a result goes: a place [N, channels] and the norm that makes it.
_Target: TypeAlias = tuple[Tensor, Activation]


@dataclass(frozen=True)
class _Stream:
    """Raw features and what the norm of their reader has made of them."""

    raw: Tensor
    active: Tensor


# The norms in waiting of a result, each with the place it must go to; None for a fresh one.
_Wanted: TypeAlias = Sequence[tuple[Tensor | None, Activation]]


class _Kernel:
    """A rounded copy of weights [9, I, O], and the parts of it for each set of taps."""

    def __init__(self, kernel: Tensor, dtype: torch.dtype) -> None:
        self._kernel = kernel.detach().to(dtype, copy=True)
        self._stacked: dict[tuple[int, ...], Weights] = {}
        self.inputs, self.outputs = kernel.shape[1], kernel.shape[2]

    def for_taps(self, taps: tuple[int, ...]) -> Weights:
        if taps not in self._stacked:
            self._stacked[taps] = Weights.of(pick_taps(self._kernel, taps), self._kernel.dtype)
        return self._stacked[taps]


def _activation(norm: SiteNorm, channels: slice = slice(None)) -> Activation:
    """A norm and its ReLU, for some of its channels."""
    scale, shift = norm.folded()
    return Activation(scale[channels].float().clone(), shift[channels].float().clone())


class _Block:
    """A residual block."""

    def __init__(self, block: ResidualBlock, dtype: torch.dtype) -> None:
        self.norm = block.norm1
        self.enter = _activation(block.norm1)
        scale, shift = block.norm2.folded()
        self._conv1 = _Kernel(block.conv1.kernel.detach() * scale, dtype)
        self._bias1 = shift.float().clone()
        self._conv2 = _Kernel(block.conv2.kernel, dtype)
        self._shortcut: Weights | None = None
        if isinstance(block.shortcut, nn.Linear):
            self._shortcut = Weights.of(block.shortcut.weight.detach().clone().t()[None], dtype)

    def __call__(
        self, x: _Stream, links: Links, wanted: _Wanted, *, keep: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Raw and activated input -> raw result, in `keep` if given, and each that is wanted."""
        (gather,) = links.forward
        count = links.outputs
        inner = take(x.active, count, self._conv1.outputs)
        weights = self._conv1.for_taps(gather.taps)
        convolve(x.active, gather.table, weights, count, raw=inner, bias=self._bias1, relu=True)
        out = take(x.active, count, self._conv2.outputs) if keep is None else keep
        into = _places(out, wanted)
        convolve(
            inner, gather.table, self._conv2.for_taps(gather.taps), count, raw=out, into=into,
            residual=x.raw if self._shortcut is None else None,
            extra=None if self._shortcut is None else (x.raw, self._shortcut),
        )  # fmt: skip
        return out, [place for place, _ in into]


def _places(like: Tensor, wanted: _Wanted) -> list[_Target]:
    return [
        (take(like, *like.shape) if place is None else place, norm) for place, norm in wanted
    ]  # fmt: skip


def _chain(
    blocks: Sequence[_Block],
    x: _Stream,
    links: Links,
    wanted: _Wanted,
    *,
    keep: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Blocks one after another; the last one's result as `_Block` returns it."""
    for block, following in itertools.pairwise(blocks):
        raw, (active,) = block(x, links, [(None, following.enter)])
        x = _Stream(raw, active)
    return blocks[-1](x, links, wanted, keep=keep)


class _Level:
    """Blocks of one resolution around everything below it."""

    def __init__(self, level: UNetLevel, width: int, dtype: torch.dtype) -> None:
        self._width = width
        self._before = [_Block(block, dtype) for block in _blocks(level.before)]
        self._below: _Level | None = None
        if level.below is not None:
            self._down_enter = _activation(level.down_norm)
            self._down = _Kernel(level.down.kernel, dtype)
            self._below = _Level(level.below, self._down.outputs, dtype)
            self._up_enter = _activation(level.up_norm)
            self._up = _Kernel(level.up.kernel, dtype)
            self._after = [_Block(block, dtype) for block in _blocks(level.after)]
            # The first block after reads [skip, up]: each part has its share of the norm.
            self._skip_enter, self._up_part_enter = (
                _activation(self._after[0].norm, part)
                for part in (slice(0, width), slice(width, None))
            )

    @property
    def enter(self) -> Activation:
        """The norm that the level's input is wanted in."""
        return self._before[0].enter

    def __call__(self, x: _Stream, plan: SparsePlan, depth: int, exits: Activation) -> Tensor:
        """Input, activated by `enter` -> output, activated by `exits`."""
        here = plan.levels[depth]
        if self._below is None or here.down is None:
            return _chain(self._before, x, here.same, [(None, exits)])[1][0]
        joined, joined_active = (take(x.raw, here.count, 2 * self._width) for _ in range(2))
        skip, up = slice(0, self._width), slice(self._width, None)
        _, (entered, _) = _chain(
            self._before, x, here.same,
            [(None, self._down_enter), (joined_active[:, skip], self._skip_enter)],
            keep=joined[:, skip],
        )  # fmt: skip
        deep = self._descend(self._below, entered, here.down, plan, depth)
        self._ascend(deep, here.down.reversed(), joined[:, up], joined_active[:, up])
        x = _Stream(joined, joined_active)
        return _chain(self._after, x, here.same, [(None, exits)])[1][0]

    def _descend(
        self, below: _Level, x: Tensor, down: Links, plan: SparsePlan, depth: int
    ) -> Tensor:
        (gather,) = down.forward
        raw, active = (take(x, down.outputs, self._down.outputs) for _ in range(2))
        weights = self._down.for_taps(gather.taps)
        convolve(x, gather.table, weights, down.outputs, raw=raw, into=[(active, below.enter)])
        return below(_Stream(raw, active), plan, depth + 1, self._up_enter)

    def _ascend(self, deep: Tensor, up: Links, raw: Tensor, active: Tensor) -> None:
        for gather in up.forward:
            convolve(
                deep, gather.table, self._up.for_taps(gather.taps), gather.table.shape[0],
                raw=raw, into=[(active, self._up_part_enter)], rows=gather.rows,
            )  # fmt: skip


def _blocks(blocks: nn.ModuleList) -> list[ResidualBlock]:
    return list(blocks)  # type: ignore[arg-type]


class TritonUNet:
    """Folded copy of a trained `SparseUNet` on Triton's kernels, no gradients.

    It runs on the device of the UNet's weights, where it expects features and plan. Sums are
    float32; what is kept between convolutions has the engine's precision.

    Args:
        unet: trained weights on a CUDA device.
        precision: of weights and features. fp32 is exact to rounding (no TF32).

    Raises:
        BackendError: unknown precision, no CUDA device, or weights elsewhere.
    """

    def __init__(self, unet: SparseUNet, *, precision: Precision = "fp16") -> None:
        if precision not in get_args(Precision):
            raise BackendError(
                f"expected a precision of {', '.join(get_args(Precision))} for the engine triton, "
                f"got {precision!r}"
            )
        self._device = unet.head.weight.device
        check_device(self._device)
        self._dtype = _DTYPES[precision]
        with torch.no_grad():
            self._stem = _Kernel(unet.stem.kernel, self._dtype)
            self._levels = _Level(unet.levels, self._stem.outputs, self._dtype)
            self._exit = _activation(unet.norm)
            self._head = Weights.of(unet.head.weight.detach().clone().t()[None], self._dtype)
            self._bias = unet.head.bias.detach().float().clone()

    @torch.inference_mode()
    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C].

        Raises:
            DeviceMemoryError: the GPU has too little memory for so many pixels, even after
                PyTorch has given back what it holds unused.
            BackendError: features or plan are on another device, or the GPU refuses a kernel.
        """
        places = {features.device, plan.levels[0].sites.device}
        if places != {self._device}:
            raise BackendError(
                f"expected features and plan on {self._device}, as the weights, got "
                f"{features.device} and {plan.levels[0].sites.device}; move them: plan.to(device)"
            )
        try:
            return with_memory(lambda: self._run(features, plan), features.shape[0], self._device)
        except TritonError as err:
            raise BackendError(
                f"expected {self._device} to take the kernels in {self._dtype}, it does not "
                f"({err}); choose another precision, or the sparse engine pytorch"
            ) from err

    def _run(self, features: Tensor, plan: SparsePlan) -> Tensor:
        links = plan.levels[0].same
        (gather,) = links.forward
        count = links.outputs
        entered = take(features, count, self._stem.inputs, self._dtype)
        entered.copy_(features)
        raw, active = (take(entered, count, self._stem.outputs) for _ in range(2))
        weights = self._stem.for_taps(gather.taps)
        convolve(
            entered, gather.table, weights, count, raw=raw, into=[(active, self._levels.enter)]
        )
        x = self._levels(_Stream(raw, active), plan, 0, self._exit)
        logits = take(features, count, self._head.outputs, torch.float32)
        convolve(x, None, self._head, count, raw=logits, bias=self._bias)
        return logits


def is_out_of_memory(err: RuntimeError) -> bool:
    """PyTorch says so by the type of the error, Triton by its text."""
    return isinstance(err, torch.OutOfMemoryError) or "[CUDA]: out of memory" in str(err)


def with_memory(run: Callable[[], Tensor], count: int, device: torch.device) -> Tensor:
    """Run once more on a cleared cache where memory ran out, then give up for this frame.

    Raises:
        DeviceMemoryError: it ran out again.
    """
    try:
        return run()
    except RuntimeError as err:
        if not is_out_of_memory(err):
            raise
        # From here on nothing holds the tensors of the failed run.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        return run()
    except RuntimeError as err:
        if not is_out_of_memory(err):
            raise
        raise DeviceMemoryError(
            f"expected memory on {device} for the sparse network on {count} pixels, it ran out "
            f"({err}); lower max_refined_pixels, or free memory of the GPU"
        ) from err.with_traceback(None)  # which would hold the tensors of the failed run
