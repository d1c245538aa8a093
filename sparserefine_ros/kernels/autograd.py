# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution and its gradients on the compiled kernels, for training on the CPU.

Shape legend: N input rows; M rows of a gather; T taps; I input channels; O output channels.
Everything is float32. A missing link is row N.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from sparserefine_ros.kernels.convolution import (
    Convolution,
    Convolver,
    Weights,
    pad_channels,
    padded,
)
from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.sparse.plan import Gather

# Rows that a thread takes at a time, `GRADIENT_CHUNK` in `gradient.h`.
_CHUNK: Final = 512


class _WeightGradient(ctypes.Structure):
    _fields_ = [
        ("features", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("gradients", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("pitch", ctypes.c_int64),
        ("gradient_pitch", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("taps", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    ]


def convolve_gathers(
    kernels: Kernels,
    features: Tensor,
    gathers: Sequence[tuple[Gather, Weights]],
    out: Tensor,
    tiles: Tensor | None = None,
) -> None:
    """Write the output rows of gathers.

    Args:
        kernels: as `compiled_kernels` returns.
        features: [N, I], contiguous.
        gathers: with the kernel's taps of each; several have all output rows among them.
        out: [outputs, padded(O)].
        tiles: as `topology.find_tiles` gives them, for Winograd's weights.
    """
    convolver = Convolver(kernels, torch.get_num_threads())
    convolver.add(
        *(
            Convolution(
                [(features, gather.table, weights)],
                gather.table.shape[0],
                out.shape[1],
                raw=out,
                rows=gather.rows,
                tiles=tiles,
            )
            for gather, weights in gathers
        )
    )
    convolver.run()


def weight_gradient(
    kernels: Kernels, features: Tensor, gradients: Tensor, gather: Gather
) -> Tensor:
    """Gradient of the weights of a gather's taps.

    Args:
        kernels: as `compiled_kernels` returns.
        features: [N, I], contiguous.
        gradients: [outputs, O] of the convolution's result.
        gather: M output rows.

    Returns:
        [T, I, O].
    """
    count, taps = gather.table.shape
    channels, outputs = features.shape[1], gradients.shape[1]
    gradients = gradients.contiguous() if padded(outputs) == outputs else pad_channels(gradients)
    # A thread without a chunk would only want memory.
    threads = max(1, min(torch.get_num_threads(), -(-count // _CHUNK)))
    partial = torch.zeros(threads, taps, channels, padded(outputs))
    call = _WeightGradient(
        features.data_ptr(), gather.table.data_ptr(),
        gradients.data_ptr(), None if gather.rows is None else gather.rows.data_ptr(),
        partial.data_ptr(), *features.shape, gradients.shape[1],
        count, taps, channels, padded(outputs), threads,
    )  # fmt: skip
    kernels.call.sr_weight_gradient(ctypes.byref(call))
    return partial.sum(0)[..., :outputs]
