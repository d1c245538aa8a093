# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on the compiled kernels, and the memory it works in.

Shape legend: N sites; T taps; I input channels. Features are float32 [N, pitch]: the pitch is the
number of channels, rounded up to whole vectors where a kernel writes. A missing link is row N.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from sparserefine_ros.kernels.library import Kernels

LANES: Final = 16
_MOST_ACTIVATIONS: Final = 2

# Features, their table int32 [count, T] (None: row by row) and weights [T * I, pitch].
Source: TypeAlias = tuple[Tensor, Tensor | None, Tensor]


@dataclass(frozen=True)
class Activation:
    """max(0, scale * x + shift), both [pitch]."""

    scale: Tensor
    shift: Tensor


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

    def take(self, slot: str, depth: int, count: int, channels: int) -> Tensor:
        """Features [count, pitch], valid until taken again."""
        pitch = padded(channels)
        size = count * pitch
        storage = self._slots.get((slot, depth))
        if storage is None or storage.numel() < size:
            storage = torch.empty(size + size // 4)
            self._slots[slot, depth] = storage
        return storage[:size].view(count, pitch)

    def convolve(
        self,
        sources: Sequence[Source],
        count: int,
        outputs: int,
        *,
        raw: Tensor | None = None,
        into: Sequence[tuple[Tensor, Activation]] = (),
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
            into: where to write the activated sums, at most two.
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
    rows, pitch = features.shape
    return _Source(
        features.data_ptr(), zeros(pitch).data_ptr(), _pointer(table), weights.data_ptr(),
        rows, pitch, taps, weights.shape[0] // taps,
    )  # fmt: skip


@functools.cache
def zeros(channels: int) -> Tensor:
    """What a missing link points to; read only."""
    return torch.zeros(channels)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pitch(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[1]
