# SPDX-License-Identifier: Apache-2.0
"""The sparse UNet for inference on the compiled CPU kernels, with batch norm folded.

Each convolution writes its raw result, where a residual or a shortcut will read it, and what the
next norm and ReLU make of it, from the sums at once. A concatenation is never built: its parts are
two sources of the same convolution.

In float32, convolutions within a level take Winograd's products where they have enough channels and
the sites lie close enough together.
In bfloat16, what enters a convolution and its weights are rounded to bfloat16; sums, residuals and
the classifier stay float32.

Shape legend: N sites of a level; features are laid out as in `kernels.convolution`.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sparserefine_ros.kernels import winograd
from sparserefine_ros.kernels.convolution import (
    Activation,
    Convolution,
    Convolver,
    Source,
    Weights,
    pad_channels,
)
from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.sparse.norm import SiteNorm
from sparserefine_ros.sparse.plan import Level, Links, SparsePlan
from sparserefine_ros.sparse.unet import ResidualBlock, SparseUNet, UNetLevel


def _activation(norm: SiteNorm, dtype: torch.dtype, channels: slice = slice(None)) -> Activation:
    """A norm and its ReLU, for some of its channels, in the precision of who reads the result."""
    scale, shift = norm.folded()
    return Activation(pad_channels(scale[channels]), pad_channels(shift[channels]), dtype)


@dataclass(frozen=True)
class _Form:
    """What weights are packed for."""

    kernels: Kernels
    dtype: torch.dtype

    def pack(self, values: Tensor) -> Weights:
        return Weights.pack_padded(values, self.kernels, self.dtype)

    def pack_float32(self, values: Tensor) -> Weights:
        return Weights.pack_padded(values, self.kernels, torch.float32)

    def pack_same(self, parts: Sequence[Tensor]) -> _Same:
        """Of a 3x3 convolution within a level, [9, I, O] for each part of its inputs."""
        inputs = sum(part.shape[1] for part in parts)
        transformed = None
        if self.dtype == torch.float32 and inputs >= winograd.LEAST_CHANNELS:
            transformed = [winograd.pack(part, self.kernels) for part in parts]
        return _Same([self.pack(part) for part in parts], transformed)


@dataclass(frozen=True)
class _Same:
    """Weights of a convolution within a level: as they are, and Winograd's; None without."""

    direct: Sequence[Weights]
    winograd: Sequence[Weights] | None


@dataclass
class _Kernel:
    """Weights [9, I, O] of a convolution between levels, packed for each set of taps."""

    values: Tensor
    form: _Form
    packed: dict[tuple[int, ...], Weights] = field(default_factory=dict)

    def for_taps(self, taps: tuple[int, ...]) -> Weights:
        if taps not in self.packed:
            self.packed[taps] = self.form.pack(self.values[list(taps)])
        return self.packed[taps]


@dataclass(frozen=True)
class _Sites:
    """Those of one level, and what they are linked to."""

    level: Level
    kernels: Kernels

    @property
    def count(self) -> int:
        return self.level.count

    @property
    def table(self) -> Tensor:
        (gather,) = self.level.same.forward
        return gather.table

    @functools.cached_property
    def tiles(self) -> Tensor | None:
        """For Winograd's products; None where the sites lie too far apart."""
        level = self.level
        return winograd.tiles_where_they_pay(self.kernels, level.sites, level.grid)

    def convolve(
        self,
        run: Convolver,
        inputs: Sequence[Tensor],
        weights: _Same,
        outputs: int,
        *,
        beside: Sequence[Source] = (),
        then: Convolution | None = None,
        **results: Any,
    ) -> None:
        """A 3x3 convolution within the level; `beside` adds to its sums."""
        tiles = self.tiles if weights.winograd else None
        parts = weights.direct if tiles is None else weights.winograd
        assert parts is not None
        sources = [(x, self.table, part) for x, part in zip(inputs, parts, strict=True)]
        convolution = Convolution([*sources, *beside], self.count, outputs, tiles=tiles, **results)
        run.add(convolution, then=then)


# What comes after a level, of each site by itself, on its activated output.
_Classify: TypeAlias = Callable[[Tensor], Convolution]


@dataclass(frozen=True)
class _Stream:
    """Raw features, None where nothing reads them, and what each norm in waiting makes of them."""

    raw: Tensor | None
    active: tuple[Tensor, ...]


class _Block:
    """A residual block on one or two concatenated inputs."""

    def __init__(self, block: ResidualBlock, parts: Sequence[int], name: str, form: _Form) -> None:
        self._name, dtype = name, form.dtype
        bounds = [sum(parts[:i]) for i in range(len(parts) + 1)]
        slices = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        self.enter = tuple(_activation(block.norm1, dtype, part) for part in slices)
        scale, shift = block.norm2.folded()
        kernel1 = block.conv1.kernel.detach() * scale.detach()
        self._conv1 = form.pack_same([kernel1[:, part] for part in slices])
        shift = pad_channels(shift)
        self._relu = Activation(torch.ones_like(shift), shift, dtype)
        self._conv2 = form.pack_same([block.conv2.kernel.detach()])
        self._width = kernel1.shape[2]
        self._shortcut = None
        if isinstance(block.shortcut, nn.Linear):
            weight = block.shortcut.weight.detach().t()
            self._shortcut = [form.pack(weight[None, part]) for part in slices]

    def __call__(
        self,
        parts: tuple[Tensor, ...],
        active: tuple[Tensor, ...],
        sites: _Sites,
        run: Convolver,
        depth: int,
        norms: Sequence[Activation],
        keep: torch.dtype | None,
        then: _Classify | None = None,
    ) -> _Stream:
        """Raw and activated parts -> the block's result, of `keep`, and activated by each norm."""
        count, width = sites.count, self._width
        inner = run.take("inner", depth, count, width, self._relu.dtype)
        sites.convolve(run, active, self._conv1, width, into=[(inner, self._relu)])
        into = [
            (run.take(f"{self._name} active {i}", depth, count, width, norm.dtype), norm)
            for i, norm in enumerate(norms)
        ]
        raw, residual, beside = None, None, []
        if self._shortcut is None:
            (residual,) = parts
        else:
            beside = [(x, None, part) for x, part in zip(parts, self._shortcut, strict=True)]
        if keep == torch.float32 and residual is not None:
            raw = residual
        elif keep is not None:
            raw = run.take(f"{self._name} raw", depth, count, width, keep)
        sites.convolve(
            run, [inner], self._conv2, width,
            beside=beside, raw=raw, residual=residual, into=into,
            then=None if then is None else then(into[0][0]),
        )  # fmt: skip
        return _Stream(raw, tuple(x for x, _ in into))


class _Level:
    """Blocks of one resolution around everything below it."""

    def __init__(self, level: UNetLevel, width: int, form: _Form) -> None:
        self.width, self._dtype = width, form.dtype
        self._before = [
            _Block(block, [width], f"before {i}", form)  # type: ignore[arg-type]
            for i, block in enumerate(level.before)
        ]
        self._below: _Level | None = None
        if level.below is not None:
            deep = level.down.kernel.shape[2]
            self._below = _Level(level.below, deep, form)
            self._down_enter = _activation(level.down_norm, form.dtype)
            self._down = _Kernel(level.down.kernel.detach(), form)
            self._up_enter = _activation(level.up_norm, form.dtype)
            self._up = _Kernel(level.up.kernel.detach(), form)
            self._after = [
                _Block(block, [width] * (1 + (i == 0)), f"after {i}", form)  # type: ignore[arg-type]
                for i, block in enumerate(level.after)
            ]

    @property
    def enter(self) -> Activation:
        """The norm that the level's input is wanted in."""
        return self._before[0].enter[0]

    def __call__(
        self,
        x: _Stream,
        levels: Sequence[_Sites],
        run: Convolver,
        depth: int,
        exits: Activation,
        then: _Classify | None = None,
    ) -> _Stream:
        """Input, activated by `enter` -> output, activated by `exits`; may overwrite `x.raw`."""
        here, down = levels[depth], levels[depth].level.down
        below = self._below if down is not None else None
        if below is None or down is None:
            return _chain(self._before, x, here, run, depth, [exits], None, then)
        last = [self._down_enter, self._after[0].enter[0]]
        x = _chain(self._before, x, here, run, depth, last, self._dtype)
        deep = self._descend(below, x.active[0], down, levels, run, depth)
        up, up_active = self._ascend(deep, down.reversed(), run, depth)
        first, *others = self._after
        norms, keep = ([others[0].enter[0]], torch.float32) if others else ([exits], None)
        assert x.raw is not None
        parts, active = (x.raw, up), (x.active[1], up_active)
        if not others:
            return first(parts, active, here, run, depth, norms, keep, then)
        x = first(parts, active, here, run, depth, norms, keep)
        return _chain(others, x, here, run, depth, [exits], None, then)

    def _descend(
        self,
        below: _Level,
        x: Tensor,
        down: Links,
        levels: Sequence[_Sites],
        run: Convolver,
        depth: int,
    ) -> Tensor:
        (gather,) = down.forward
        count, width = down.outputs, below.width
        raw = run.take("down raw", depth + 1, count, width)
        active = run.take("down active", depth + 1, count, width, below.enter.dtype)
        source = (x, gather.table, self._down.for_taps(gather.taps))
        run.add(Convolution([source], count, width, raw=raw, into=[(active, below.enter)]))
        return below(_Stream(raw, (active,)), levels, run, depth + 1, self._up_enter).active[0]

    def _ascend(self, deep: Tensor, up: Links, run: Convolver, depth: int) -> tuple[Tensor, Tensor]:
        enter = self._after[0].enter[1]
        raw = run.take("up raw", depth, up.outputs, self.width, self._dtype)
        active = run.take("up active", depth, up.outputs, self.width, enter.dtype)
        run.add(
            *(
                Convolution(
                    [(deep, gather.table, self._up.for_taps(gather.taps))],
                    gather.table.shape[0], self.width, raw=raw, rows=gather.rows,
                    into=[(active, enter)],
                )
                for gather in up.forward
            )
        )  # fmt: skip
        return raw, active


def _chain(
    blocks: Sequence[_Block],
    x: _Stream,
    sites: _Sites,
    run: Convolver,
    depth: int,
    last: Sequence[Activation],
    keep: torch.dtype | None,
    then: _Classify | None = None,
) -> _Stream:
    """Blocks of one part each, one after another; what follows `depth` is of the last block."""
    for i, block in enumerate(blocks):
        assert x.raw is not None
        is_last = i + 1 == len(blocks)
        norms = last if is_last else [blocks[i + 1].enter[0]]
        of_raw = keep if is_last else torch.float32
        x = block((x.raw,), x.active, sites, run, depth, norms, of_raw, then if is_last else None)
    return x


class CompiledUNet:
    """Folded copy of a trained `SparseUNet`; same results within rounding, no gradients.

    Not re-entrant: calls share one set of buffers.

    Args:
        unet: trained weights.
        kernels: as `compiled_kernels` returns.
        threads: threads of each convolution.
        dtype: of the products, float32 or bfloat16.
    """

    def __init__(
        self,
        unet: SparseUNet,
        kernels: Kernels,
        *,
        threads: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._run, self._kernels, self._dtype = Convolver(kernels, threads), kernels, dtype
        form = _Form(kernels, dtype)
        unet = copy.deepcopy(unet)
        stem = unet.stem.kernel.detach()
        self._inputs, self._width = stem.shape[1], stem.shape[2]
        self._stem = form.pack_same([stem])
        self._levels = _Level(unet.levels, self._width, form)
        self._exit = _activation(unet.norm, torch.float32)
        self._classes = unet.head.out_features
        self._head = form.pack_float32(unet.head.weight.detach().t()[None])
        self._bias = pad_channels(unet.head.bias)

    def input_buffer(self, count: int) -> Tensor:
        """Where the features of so many sites are wanted, [N, inputs or more].

        What is more must be zero. The next call of this method gives the same memory.
        """
        return self._run.take("input", 0, count, self._inputs, self._dtype)

    def place(self, features: Tensor) -> Tensor:
        """Features float32 [N, inputs] -> the input buffer with them in it."""
        entered = self.input_buffer(features.shape[0])
        entered[:, : self._inputs] = features
        entered[:, self._inputs :] = 0
        return entered

    @torch.inference_mode()
    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C].

        Features that were written into `input_buffer` are taken as they are. The logits are a view
        of a buffer that the next call overwrites.
        """
        self._run.forget()
        run, levels = self._run, [_Sites(level, self._kernels) for level in plan.levels]
        count, width = levels[0].count, self._width
        assert features.shape[0] == count
        entered = self.input_buffer(count)
        if features.data_ptr() != entered.data_ptr():
            entered = self.place(features)
        raw = run.take("stem raw", 0, count, width)
        active = run.take("stem", 0, count, width, self._levels.enter.dtype)
        into = [(active, self._levels.enter)]
        levels[0].convolve(run, [entered], self._stem, width, raw=raw, into=into)
        logits = run.take("logits", 0, count, self._classes)

        def classify(x: Tensor) -> Convolution:
            head = [(x, None, self._head)]
            return Convolution(head, count, self._classes, raw=logits, bias=self._bias)

        self._levels(_Stream(raw, (active,)), levels, run, 0, self._exit, classify)
        run.run()
        return logits[:, : self._classes]
