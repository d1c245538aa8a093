# SPDX-License-Identifier: Apache-2.0
"""The sparse UNet for inference on the compiled CPU kernels, with batch norm folded.

Each convolution writes its raw result, where a residual or a shortcut will read it, and what the
next norm and ReLU make of it, while the sums are still in registers. A concatenation is never
built: its parts are two sources of the same convolution.

Shape legend: N sites of a level. Features are float32 [N + 1, pitch]: the pitch is the number of
channels rounded up to whole vectors, and the last row is zero, for missing links to point to.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.sparse.convolve import stacked_taps
from sparserefine_ros.sparse.index import TAPS
from sparserefine_ros.sparse.plan import Gather, Links, SparsePlan
from sparserefine_ros.sparse.unet import ResidualBlock, SiteNorm, SparseUNet, UNetLevel

LANES: Final = 16
_ALL_TAPS: Final = tuple(range(TAPS))
_MOST_ACTIVATIONS: Final = 2

# Features, their table int32 [count, T] (None: row by row) and weights [T * I, pitch].
Source: TypeAlias = tuple[Tensor, Tensor | None, Tensor]


class _Source(ctypes.Structure):
    _fields_ = [
        ("features", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("pitch", ctypes.c_int64),
        ("taps", ctypes.c_int64),
        ("channels", ctypes.c_int64),
    ]


class _Activation(ctypes.Structure):
    _fields_ = [
        ("out", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("pitch", ctypes.c_int64),
    ]


class _Convolution(ctypes.Structure):
    _fields_ = [
        ("sources", ctypes.POINTER(_Source)),
        ("source_count", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("residual_pitch", ctypes.c_int64),
        ("raw", ctypes.c_void_p),
        ("raw_pitch", ctypes.c_int64),
        ("activations", _Activation * _MOST_ACTIVATIONS),
        ("rows", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("relu", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    ]


def padded(channels: int) -> int:
    """Channels rounded up to whole vectors."""
    return -(-channels // LANES) * LANES


def _pad_last(values: Tensor) -> Tensor:
    """Zeros behind the last axis up to whole vectors."""
    size = values.shape[-1]
    return F.pad(values.detach().float(), (0, padded(size) - size)).contiguous()


@dataclass(frozen=True)
class _Norm:
    """Batch norm with its running statistics, for some of its channels."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, norm: SiteNorm, channels: slice = slice(None)) -> _Norm:
        scale, shift = _scale_and_shift(norm)
        return cls(_pad_last(scale[channels]), _pad_last(shift[channels]))


def _scale_and_shift(norm: SiteNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


@dataclass
class _Kernel:
    """Weights [9, I, O] of a part of a convolution's inputs, stacked for each set of taps."""

    values: Tensor
    stacked: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def for_taps(self, taps: tuple[int, ...]) -> Tensor:
        if taps not in self.stacked:
            self.stacked[taps] = _pad_last(stacked_taps(self.values, taps))
        return self.stacked[taps]


class _Runner:
    """Runs convolutions on features that it keeps from frame to frame."""

    def __init__(self, kernels: Kernels, threads: int) -> None:
        self._kernels, self._threads = kernels, threads
        self._slots: dict[tuple[str, int], Tensor] = {}

    def take(self, slot: str, depth: int, count: int, channels: int) -> Tensor:
        """Features [count + 1, pitch] with a last row of zeros, valid until taken again."""
        pitch = padded(channels)
        size = (count + 1) * pitch
        storage = self._slots.get((slot, depth))
        if storage is None or storage.numel() < size:
            storage = torch.empty(size + size // 4)
            self._slots[slot, depth] = storage
        features = storage[:size].view(count + 1, pitch)
        features[count] = 0.0
        return features

    def convolve(
        self,
        sources: Sequence[Source],
        count: int,
        outputs: int,
        *,
        raw: Tensor | None = None,
        into: Sequence[tuple[Tensor, _Norm]] = (),
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        rows: Tensor | None = None,
        relu: bool = False,
    ) -> None:
        """One call of the kernel.

        Args:
            sources: what is summed over.
            count: output rows.
            outputs: output channels.
            raw: where to write the sums, after `relu` if asked for.
            into: where to write the sums after a norm and ReLU.
            bias: [pitch].
            residual: added to the sums; may be `raw`.
            rows: int64 [count], output rows; None for all in order.
            relu: see `raw`.
        """
        listed = (_Source * len(sources))(
            *(_describe(features, table, weights) for features, table, weights in sources)
        )
        activations = (_Activation * _MOST_ACTIVATIONS)(
            *(
                _Activation(x.data_ptr(), n.scale.data_ptr(), n.shift.data_ptr(), x.shape[1])
                for x, n in into
            )
        )
        call = _Convolution(
            listed, len(sources), _pointer(bias), _pointer(residual), _pitch(residual),
            _pointer(raw), _pitch(raw), activations, _pointer(rows), count, padded(outputs),
            relu, self._threads,
        )  # fmt: skip
        self._kernels.call.sr_convolve(ctypes.byref(call))


def _describe(features: Tensor, table: Tensor | None, weights: Tensor) -> _Source:
    taps = 1 if table is None else table.shape[1]
    return _Source(
        features.data_ptr(), _pointer(table), weights.data_ptr(), features.shape[1], taps,
        weights.shape[0] // taps,
    )  # fmt: skip


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pitch(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[1]


@dataclass(frozen=True)
class _Stream:
    """Raw features and what each norm in waiting has made of them."""

    raw: Tensor
    active: tuple[Tensor, ...]


class _Block:
    """A residual block on one or two concatenated inputs."""

    def __init__(self, block: ResidualBlock, parts: Sequence[int], name: str) -> None:
        self._name = name
        bounds = [sum(parts[:i]) for i in range(len(parts) + 1)]
        slices = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        self.enter = tuple(_Norm.of(block.norm1, part) for part in slices)
        scale, shift = _scale_and_shift(block.norm2)
        kernel1 = block.conv1.kernel.detach() * scale.detach()
        self._conv1 = [_Kernel(kernel1[:, part]) for part in slices]
        self._bias1 = _pad_last(shift)
        self._conv2 = _Kernel(block.conv2.kernel.detach())
        self._width = kernel1.shape[2]
        self._shortcut = None
        if isinstance(block.shortcut, nn.Linear):
            weight = block.shortcut.weight.detach().t()
            self._shortcut = [_pad_last(weight[part]) for part in slices]

    def __call__(
        self,
        parts: tuple[Tensor, ...],
        active: tuple[Tensor, ...],
        links: Links,
        run: _Runner,
        depth: int,
        norms: Sequence[_Norm],
    ) -> _Stream:
        """Raw and activated parts -> the block's result, activated by each of `norms`."""
        (gather,) = links.forward
        count, width = links.outputs, self._width
        inner = run.take("inner", depth, count, width)
        run.convolve(
            [
                (x, gather.table, kernel.for_taps(gather.taps))
                for x, kernel in zip(active, self._conv1, strict=True)
            ],
            count, width, raw=inner, bias=self._bias1, relu=True,
        )  # fmt: skip
        sources: list[Source] = [(inner, gather.table, self._conv2.for_taps(gather.taps))]
        into = [
            (run.take(f"{self._name} active {i}", depth, count, width), norm)
            for i, norm in enumerate(norms)
        ]
        if self._shortcut is None:
            out = parts[0]
            run.convolve(sources, count, width, raw=out, residual=out, into=into)
        else:
            out = run.take(f"{self._name} raw", depth, count, width)
            sources += [(x, None, weight) for x, weight in zip(parts, self._shortcut, strict=True)]
            run.convolve(sources, count, width, raw=out, into=into)
        return _Stream(out, tuple(x for x, _ in into))


class _Level:
    """Blocks of one resolution around everything below it."""

    def __init__(self, level: UNetLevel, width: int) -> None:
        self.width = width
        self._before = [
            _Block(block, [width], f"before {i}")  # type: ignore[arg-type]
            for i, block in enumerate(level.before)
        ]
        self._below: _Level | None = None
        if level.below is not None:
            deep = level.down.kernel.shape[2]
            self._below = _Level(level.below, deep)
            self._down_enter = _Norm.of(level.down_norm)
            self._down = _Kernel(level.down.kernel.detach())
            self._up_enter = _Norm.of(level.up_norm)
            self._up = _Kernel(level.up.kernel.detach())
            self._after = [
                _Block(block, [width, width] if i == 0 else [width], f"after {i}")  # type: ignore[arg-type]
                for i, block in enumerate(level.after)
            ]

    @property
    def enter(self) -> _Norm:
        """The norm that the level's input is wanted in."""
        return self._before[0].enter[0]

    def __call__(
        self, x: _Stream, plan: SparsePlan, run: _Runner, depth: int, exits: _Norm
    ) -> _Stream:
        """Input, activated by `enter` -> output, activated by `exits`; overwrites `x.raw`."""
        here = plan.levels[depth]
        below = self._below if here.down is not None else None
        last = [exits] if below is None else [self._down_enter, self._after[0].enter[0]]
        x = _chain(self._before, x, here.same, run, depth, last)
        if below is None or here.down is None:
            return x
        deep = self._descend(below, x.active[0], here.down, plan, run, depth)
        up, up_active = self._ascend(deep, here.down.reversed(), run, depth)
        first, *others = self._after
        norms = [others[0].enter[0]] if others else [exits]
        x = first((x.raw, up), (x.active[1], up_active), here.same, run, depth, norms)
        return _chain(others, x, here.same, run, depth, [exits])

    def _descend(
        self, below: _Level, x: Tensor, down: Links, plan: SparsePlan, run: _Runner, depth: int
    ) -> Tensor:
        (gather,) = down.forward
        count, width = down.outputs, below.width
        raw = run.take("down raw", depth + 1, count, width)
        active = run.take("down active", depth + 1, count, width)
        run.convolve(
            [(x, gather.table, self._down.for_taps(gather.taps))],
            count, width, raw=raw, into=[(active, below.enter)],
        )  # fmt: skip
        return below(_Stream(raw, (active,)), plan, run, depth + 1, self._up_enter).active[0]

    def _ascend(self, deep: Tensor, up: Links, run: _Runner, depth: int) -> tuple[Tensor, Tensor]:
        raw = run.take("up raw", depth, up.outputs, self.width)
        active = run.take("up active", depth, up.outputs, self.width)
        for gather in up.forward:
            self._ascend_rows(deep, gather, run, raw, active)
        return raw, active

    def _ascend_rows(
        self, deep: Tensor, gather: Gather, run: _Runner, raw: Tensor, active: Tensor
    ) -> None:
        run.convolve(
            [(deep, gather.table, self._up.for_taps(gather.taps))],
            gather.table.shape[0], self.width, raw=raw, rows=gather.rows,
            into=[(active, self._after[0].enter[1])],
        )  # fmt: skip


def _chain(
    blocks: Sequence[_Block],
    x: _Stream,
    links: Links,
    run: _Runner,
    depth: int,
    last: Sequence[_Norm],
) -> _Stream:
    """Blocks of one part each, one after another."""
    for i, block in enumerate(blocks):
        norms = last if i + 1 == len(blocks) else [blocks[i + 1].enter[0]]
        x = block((x.raw,), x.active, links, run, depth, norms)
    return x


class CompiledUNet:
    """Folded copy of a trained `SparseUNet`; same results within rounding, no gradients.

    Not re-entrant: calls share one set of buffers.

    Args:
        unet: trained weights.
        kernels: as `compiled_kernels` returns.
        threads: threads of each convolution.
    """

    def __init__(self, unet: SparseUNet, kernels: Kernels, *, threads: int) -> None:
        self._run = _Runner(kernels, threads)
        unet = copy.deepcopy(unet)
        stem = unet.stem.kernel.detach()
        self._inputs, self._width = stem.shape[1], stem.shape[2]
        self._stem = _Kernel(stem)
        self._levels = _Level(unet.levels, self._width)
        self._exit = _Norm.of(unet.norm)
        self._classes = unet.head.out_features
        self._head = _pad_last(unet.head.weight.t())
        self._bias = _pad_last(unet.head.bias)

    @torch.inference_mode()
    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C].

        The logits are a view of a buffer that the next call overwrites.
        """
        run, links = self._run, plan.levels[0].same
        (gather,) = links.forward
        count, width = links.outputs, self._width
        entered = run.take("input", 0, count, self._inputs)
        entered[:count, : self._inputs] = features
        raw, active = run.take("stem raw", 0, count, width), run.take("stem", 0, count, width)
        run.convolve(
            [(entered, gather.table, self._stem.for_taps(_ALL_TAPS))],
            count, width, raw=raw, into=[(active, self._levels.enter)],
        )  # fmt: skip
        x = self._levels(_Stream(raw, (active,)), plan, run, 0, self._exit)
        logits = run.take("logits", 0, count, self._classes)
        run.convolve(
            [(x.active[0], None, self._head)], count, self._classes, raw=logits, bias=self._bias
        )
        return logits[:count, : self._classes]
