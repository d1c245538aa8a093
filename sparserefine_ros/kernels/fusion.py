# SPDX-License-Identifier: Apache-2.0
"""Entropy, class and gated fusion on the compiled kernels.

Shape legend: N pixels; C classes.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparserefine_ros.kernels.library import Kernels, address, integer


class _Summary(ctypes.Structure):
    _fields_ = [
        ("entropy", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("top", ctypes.c_void_p),
    ]


_GATE_WEIGHTS = (
    "gate_in", "gate_in_bias", "gate_out", "gate_out_bias",
    "mix_in", "mix_in_bias", "mix_out", "mix_out_bias",
)  # fmt: skip


class _Gate(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in _GATE_WEIGHTS), ("hidden", ctypes.c_int64)]


Columns = tuple[Tensor, Tensor, Tensor]


def summarise_columns(kernels: Kernels, logits: Tensor) -> Columns:
    """Entropy in nats, labels and top probability of each column of float32 [C, N], each [N]."""
    logits = logits.float().contiguous()
    classes, count = logits.shape
    result, summary = _fresh_summary(count)
    kernels.call.sr_summarise(
        address(logits), integer(classes), integer(count), integer(count),
        ctypes.byref(summary), integer(torch.get_num_threads()),
    )  # fmt: skip
    return result


def _fresh_summary(count: int) -> tuple[Columns, _Summary]:
    entropy, top = torch.empty(count), torch.empty(count)
    labels = torch.empty(count, dtype=torch.uint8)
    pointers = _Summary(entropy.data_ptr(), labels.data_ptr(), top.data_ptr())
    return (entropy, labels, top), pointers


class CompiledGate:
    """A trained gate, fused and summarised in one pass.

    Args:
        kernels: as `compiled_kernels` returns.
        gate_in, gate_out: the gate's linear layers.
        mix_in, mix_out: those of the mixing perceptron.
    """

    def __init__(
        self,
        kernels: Kernels,
        gate_in: torch.nn.Linear,
        gate_out: torch.nn.Linear,
        mix_in: torch.nn.Linear,
        mix_out: torch.nn.Linear,
    ) -> None:
        self._kernels = kernels
        # A softmax over two values is the sigmoid of their difference.
        preference = gate_out.weight[0] - gate_out.weight[1]
        threshold = (gate_out.bias[0] - gate_out.bias[1]).reshape(1)
        weights = (
            gate_in.weight, gate_in.bias, preference, threshold,
            mix_in.weight, mix_in.bias, mix_out.weight, mix_out.bias,
        )  # fmt: skip
        self._weights = [weight.detach().float().clone().contiguous() for weight in weights]
        self._gate = _Gate(*(weight.data_ptr() for weight in self._weights), gate_in.out_features)

    def __call__(self, dense: Tensor, refined: Tensor) -> Columns:
        """Two float32 [N, C] with dense rows -> entropy, labels and top probability, each [N]."""
        dense, refined = _with_dense_rows(dense), _with_dense_rows(refined)
        count, classes = dense.shape
        result, summary = _fresh_summary(count)
        self._kernels.call.sr_fuse(
            ctypes.byref(self._gate), address(dense), integer(dense.stride(0)), address(refined),
            integer(refined.stride(0)), integer(classes), integer(count),
            ctypes.byref(summary), integer(torch.get_num_threads()),
        )  # fmt: skip
        return result


def _with_dense_rows(rows: Tensor) -> Tensor:
    rows = rows.float()
    return rows if rows.stride(1) == 1 or rows.numel() == 0 else rows.contiguous()
