# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on the compiled kernels, and the memory it works in.

Shape legend: N sites; T taps; I input, O output channels. Features are float32 or bfloat16
[N, pitch]: the pitch is the number of channels, rounded up to whole vectors where a kernel writes.
A missing link is row N.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.kernels.library import Kernels, integer

LANES: Final = 16
_MOST_ACTIVATIONS: Final = 2
_MOST_SOURCES_IN_QUADS: Final = 4
_MOST_TAPS_IN_QUADS: Final = 9


@dataclass(frozen=True)
class Weights:
    """A convolution's weights [T, I, O] as its kernel reads them.

    Attributes:
        words: float32, or pairs of bfloat16 seen as float32; see `SrSource` in `source.h`.
        channels: words per tap and output.
        dtype: float32 or bfloat16, which the features have too.
        quads: whether the last 16 outputs are laid out for `quads.h`.
        winograd: whether they are those of `kernels.winograd.pack`.
    """

    words: Tensor
    channels: int
    dtype: torch.dtype
    quads: bool = False
    winograd: bool = False

    @classmethod
    def pack(cls, values: Tensor, kernels: Kernels, dtype: torch.dtype = torch.float32) -> Weights:
        """From weights [T, I, O], for the library that will read them."""
        words = _words(pad_channels(values), dtype)
        *blocks, last = torch.split(words, kernels.block, 2)
        quads = kernels.quad_words > 0 and last.shape[2] == LANES
        quads = quads and last.shape[1] > 0 and last.shape[1] % kernels.quad_words == 0
        if quads:
            # [taps, groups of words, halves, words, pairs of quads, quads, outputs]
            last = last.reshape(last.shape[0], -1, 2, 4, 2, 2, 4)
            last = torch.stack([last[:, :, 0], last[:, :, 1].flip(4)], 5)
        packed = torch.cat([block.flatten() for block in (*blocks, last)])
        return cls(packed, words.shape[1], dtype, quads)

    @classmethod
    def pack_padded(cls, values: Tensor, kernels: Kernels, dtype: torch.dtype) -> Weights:
        """From weights [T, I, O], for features with zeros up to whole vectors."""
        inputs = values.shape[1]
        if padded(values.shape[2]) % kernels.block == LANES:
            values = F.pad(values.detach(), (0, 0, 0, padded(inputs) - inputs))
        return cls.pack(values, kernels, dtype)


def _words(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 [T, I, O] -> [T, words, O]: as they are, or pairs of bfloat16 inputs."""
    if dtype != torch.bfloat16:
        return values
    taps, inputs, outputs = values.shape
    pairs = F.pad(values, (0, 0, 0, inputs % 2)).view(taps, -1, 2, outputs)
    return pairs.to(dtype).transpose(2, 3).contiguous().view(torch.float32).squeeze(3)


# Features, their table int32 [count, T] (None: row by row) and weights.
Source: TypeAlias = tuple[Tensor, Tensor | None, Weights]


@dataclass(frozen=True)
class Activation:
    """max(0, scale * x + shift), both float32 [pitch]; the result is of `dtype`."""

    scale: Tensor
    shift: Tensor
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Convolution:
    """What is summed over, and where the sums go.

    Attributes:
        sources: the weights of those that are not Winograd's are packed alike.
        count: output rows.
        outputs: output channels.
        raw: where to write the sums, float32 or bfloat16.
        into: where to write the activated sums, at most two.
        bias: [pitch].
        residual: float32, added to the sums; may be `raw`.
        rows: int64 [count], output rows; None for all in order.
        tiles: int32 [tiles, 16], see `topology.find_tiles`; for Winograd's weights.
    """

    sources: Sequence[Source]
    count: int
    outputs: int
    raw: Tensor | None = None
    into: Sequence[tuple[Tensor, Activation]] = ()
    bias: Tensor | None = None
    residual: Tensor | None = None
    rows: Tensor | None = None
    tiles: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.tiles is not None or not any(part.winograd for *_, part in self.sources)


class _Source(ctypes.Structure):
    _fields_ = [
        ("features", ctypes.c_void_p),
        ("none", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("pitch", ctypes.c_int64),
        ("taps", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("pairs", ctypes.c_int64),
        ("winograd", ctypes.c_int64),
    ]


class _Activation(ctypes.Structure):
    _fields_ = [
        ("out", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("pitch", ctypes.c_int64),
        ("bfloat16", ctypes.c_int64),
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
        ("raw_bfloat16", ctypes.c_int64),
        ("activations", _Activation * _MOST_ACTIVATIONS),
        ("rows", ctypes.c_void_p),
        ("tiles", ctypes.c_void_p),
        ("tile_count", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("quads", ctypes.c_int64),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("parts", ctypes.POINTER(_Convolution)),
        ("part_count", ctypes.c_int64),
        ("then", ctypes.POINTER(_Convolution)),
    ]


def padded(channels: int) -> int:
    """Channels rounded up to whole vectors."""
    return -(-channels // LANES) * LANES


def pad_channels(values: Tensor) -> Tensor:
    """Float32 copy with zeros behind the last axis up to whole vectors."""
    size = values.shape[-1]
    return F.pad(values.detach().float(), (0, padded(size) - size)).contiguous()


class Convolver:
    """Runs convolutions on features that it keeps from frame to frame. Not re-entrant.

    Args:
        kernels: as `compiled_kernels` returns.
        threads: threads of each convolution.
    """

    def __init__(self, kernels: Kernels, threads: int) -> None:
        self._kernels, self._threads = kernels, threads
        self._slots: dict[tuple[str, int], Tensor] = {}
        self._steps: list[tuple[tuple[Convolution, ...], Convolution | None]] = []

    def take(
        self,
        slot: str,
        depth: int,
        count: int,
        channels: int,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Features [count, pitch], valid until taken again."""
        pitch = padded(channels)
        size = count * pitch
        storage = self._slots.get((slot, depth))
        if storage is None or storage.numel() < size or storage.dtype != dtype:
            with torch.inference_mode(False):  # callers of either kind write into it
                storage = torch.empty(size + size // 4, dtype=dtype)
            self._slots[slot, depth] = storage
        return storage[:size].view(count, pitch)

    def add(self, *parts: Convolution, then: Convolution | None = None) -> None:
        """Add a step to those that `run` will take; until then its memory must not change.

        Args:
            parts: one, or several that share the rows of their output among them, in ascending
                order each.
            then: of each row by itself, on what the parts write.
        """
        single = len(parts) == 1
        assert single or all(c.tiles is None and c.rows is not None for c in parts)
        assert then is None or not single or parts[0].rows is None
        self._steps.append((parts, then))

    def forget(self) -> None:
        """Drop steps that were added and not run, such as those of a frame that failed."""
        self._steps.clear()

    def run(self) -> None:
        """Take the steps that were added since the last time, one after another."""
        steps, self._steps = self._steps, []
        calls = (_Step * len(steps))(
            *(
                _Step(
                    (_Convolution * len(parts))(*map(_call, parts)),
                    len(parts),
                    None if then is None else (_Convolution * 1)(_call(then)),
                )
                for parts, then in steps
            )
        )
        self._kernels.call.sr_convolve(calls, integer(len(steps)), integer(self._threads))


def _call(c: Convolution) -> _Convolution:
    sources = (_Source * len(c.sources))(*(_describe(*source) for source in c.sources))
    activations = (_Activation * _MOST_ACTIVATIONS)(
        *(
            _Activation(
                x.data_ptr(), n.scale.data_ptr(), n.shift.data_ptr(), x.shape[1],
                n.dtype == torch.bfloat16,
            )
            for x, n in c.into
        )
    )  # fmt: skip
    return _Convolution(
        sources, len(sources), _pointer(c.bias), _pointer(c.residual), _pitch(c.residual),
        _pointer(c.raw), _pitch(c.raw), _is_bfloat16(c.raw), activations, _pointer(c.rows),
        _pointer(c.tiles), 0 if c.tiles is None else c.tiles.shape[0], c.count,
        padded(c.outputs), _are_in_quads(c.sources),
    )  # fmt: skip


def _describe(features: Tensor, table: Tensor | None, weights: Weights) -> _Source:
    assert features.dtype == weights.dtype
    taps = 1 if table is None else table.shape[1]
    pairs = weights.dtype == torch.bfloat16
    rows, pitch = features.shape[0], features.shape[1] // (2 if pairs else 1)
    return _Source(
        features.data_ptr(), zeros(weights.channels).data_ptr(), _pointer(table),
        weights.words.data_ptr(), rows, pitch, taps, weights.channels, pairs, weights.winograd,
    )  # fmt: skip


# Kernels get their addresses: whoever comes second must not get others, which nobody keeps.
_zeros: dict[int, Tensor] = {}


def zeros(channels: int) -> Tensor:
    """What a missing link points to; read only."""
    if channels not in _zeros:
        _zeros.setdefault(channels, torch.zeros(channels))
    return _zeros[channels]


def _are_in_quads(sources: Sequence[Source]) -> bool:
    """Those that are not Winograd's."""
    kinds = {(part.quads, part.dtype) for *_, part in sources if not part.winograd}
    quads = any(quads for quads, _ in kinds)
    if quads:
        assert len(kinds) == 1
        assert len(sources) <= _MOST_SOURCES_IN_QUADS
        assert all(
            table is None or table.shape[1] <= _MOST_TAPS_IN_QUADS for _, table, _ in sources
        )
    return quads


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _is_bfloat16(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == torch.bfloat16


def _pitch(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[1]
