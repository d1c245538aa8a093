# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution with gradients, on the compiled kernels, on Triton's, or in PyTorch.

The compiled kernels compute in float32 on the CPU, by Winograd's products where those pay. Triton's
take a CUDA GPU where the environment variable SPARSEREFINE_KERNELS=triton asks for them. In
PyTorch, which takes every other case, the linked rows of a chunk are gathered, then multiplied as
one matrix.

Shape legend: N input rows; M output rows of a gather; T taps of a gather; K = 9 kernel taps;
I input channels; O output channels. Kernels are [K, I, O], taps numbered as in `plan`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from sparserefine_ros.errors import BackendError
from sparserefine_ros.kernels import autograd, convolution, winograd
from sparserefine_ros.kernels.library import TRITON, VARIABLE, Kernels, compiled_kernels
from sparserefine_ros.sparse.index import TAPS
from sparserefine_ros.sparse.plan import Gather, Links

# Elements of the gathered block. On a CPU about 4 MB of float32 stays in the caches of two cores; a
# GPU wants few launches.
_CHUNK_ELEMENTS: Final = 1 << 20
_CHUNK_ELEMENTS_GPU: Final = 1 << 26

_ALL_TAPS: Final = tuple(range(TAPS))


def convolve(features: Tensor, kernel: Tensor, links: Links) -> Tensor:
    """Sparse convolution with gradients for features and kernel; in lower precision under autocast.

    Args:
        features: float32 [N, I], one row for each input site of `links`.
        kernel: float32 [9, I, O].
        links: stride-1, strided or (reversed) transposed links.

    Returns:
        [outputs, O]; rows without any link are zero.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device):
        reduced = torch.get_autocast_dtype(device)
        features, kernel = features.to(reduced), kernel.to(reduced)
    return _Convolution.apply(features, kernel, links)  # type: ignore[no-any-return,no-untyped-call]


def with_none_row(features: Tensor) -> Tensor:
    """Append the row of zeros that a missing link points to, [N, I] -> [N + 1, I]."""
    return torch.cat([features, features.new_zeros(1, features.shape[1])])


def apply_gather(
    padded: Tensor,
    weight: Tensor,
    gather: Gather,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    accumulate: bool = False,
) -> None:
    """Write a gather's output rows.

    Args:
        padded: [N + 1, I], last row zero.
        weight: [T * I, O], the kernel's taps of this gather, stacked.
        gather: M output rows.
        out: [outputs, O]; only the gather's rows are written.
        bias: [O]; where given, the rows become max(0, product + bias).
        accumulate: add to the rows instead; needs a gather of all rows in order.
    """
    for rows, block in gathered_chunks(padded, gather):
        if accumulate:
            out[rows].addmm_(block, weight)
        elif bias is not None:
            torch.addmm(bias, block, weight, out=out[rows]).relu_()
        elif isinstance(rows, slice):
            torch.mm(block, weight, out=out[rows])
        else:
            out.index_copy_(0, rows, block @ weight)


def gathered_chunks(padded: Tensor, gather: Gather) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """Yield (output rows, gathered inputs [m, T * I]) over chunks of the output rows.

    The yielded block is one buffer, overwritten by the next chunk.
    """
    count, taps = gather.table.shape
    width = taps * padded.shape[1]
    most = _CHUNK_ELEMENTS_GPU if padded.is_cuda else _CHUNK_ELEMENTS
    step = max(1, most // max(1, width))
    buffer = padded.new_empty(min(step, count) * taps, padded.shape[1])
    for start in range(0, count, step):
        chunk = slice(start, min(start + step, count))
        table = gather.table[chunk].reshape(-1)
        block = buffer[: table.numel()]
        torch.index_select(padded, 0, table, out=block)
        yield (chunk if gather.rows is None else gather.rows[chunk]), block.view(-1, width)


def stacked_taps(kernel: Tensor, taps: tuple[int, ...]) -> Tensor:
    """[9, I, O] -> contiguous [T * I, O] for the given taps."""
    return pick_taps(kernel, taps).reshape(-1, kernel.shape[2])


def pick_taps(kernel: Tensor, taps: tuple[int, ...]) -> Tensor:
    """[9, I, O] -> [T, I, O]; a list as index would make a GPU's host wait."""
    if taps == _ALL_TAPS:
        return kernel
    return kernel.flip(0) if taps == _ALL_TAPS[::-1] else torch.stack([kernel[t] for t in taps])


def _add_taps(result: Tensor, taps: tuple[int, ...], values: Tensor) -> None:
    """Add [T, I, O] to those taps of [9, I, O]."""
    if taps == _ALL_TAPS:
        result += values
        return
    for tap, value in zip(taps, values, strict=True):
        result[tap] += value


def _convolve(features: Tensor, kernel: Tensor, links: Links) -> Tensor:
    gathers, outputs, width = links.forward, links.outputs, kernel.shape[2]
    triton = _triton_for(features)
    if triton is not None:
        return triton.convolve_gathers(features, kernel, gathers, outputs)
    kernels = _kernels_for(features)
    if kernels is not None:
        return _convolve_compiled(kernels, features.contiguous(), kernel, links)
    padded, out = with_none_row(features), features.new_empty(outputs, width)
    for gather in gathers:
        apply_gather(padded, stacked_taps(kernel, gather.taps), gather, out)
    return out


def _convolve_compiled(kernels: Kernels, features: Tensor, kernel: Tensor, links: Links) -> Tensor:
    _, inputs, width = kernel.shape
    out = features.new_empty(links.outputs, convolution.padded(width))
    tiles = None if links.tiles is None else links.tiles.for_inputs(kernels, inputs)
    pack = convolution.Weights.pack if tiles is None else winograd.pack
    weights = [(gather, pack(pick_taps(kernel, gather.taps), kernels)) for gather in links.forward]
    autograd.convolve_gathers(kernels, features, weights, out, tiles)
    return out[:, :width]


def _kernels_for(features: Tensor) -> Kernels | None:
    suits = features.dtype == torch.float32 and features.device.type == "cpu"
    return compiled_kernels() if suits else None


@dataclass(frozen=True)
class _Triton:
    """What `sparserefine_ros.triton_kernels.gradient` offers."""

    convolve_gathers: Callable[[Tensor, Tensor, tuple[Gather, ...], int], Tensor]
    weight_gradient: Callable[[Tensor, Tensor, Gather], Tensor]
    suits: Callable[[torch.device], bool]


@functools.cache
def _triton() -> _Triton:
    try:
        from sparserefine_ros.triton_kernels import gradient, runtime
    except ImportError as err:
        raise BackendError(
            f"expected the package triton for {VARIABLE}={TRITON} ({err}); pip install triton "
            f"(Linux, x86-64), or unset {VARIABLE}"
        ) from err
    return _Triton(gradient.convolve_gathers, gradient.weight_gradient, runtime.suits)


def _triton_for(features: Tensor) -> _Triton | None:
    if os.environ.get(VARIABLE, "").lower() != TRITON or features.dtype == torch.float64:
        return None
    return _triton() if _triton().suits(features.device) else None


class _Convolution(torch.autograd.Function):
    """The backward pass is a convolution along the backward gathers: no scatter, no atomics."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, links: Links) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.links = links
        return _convolve(features, kernel, links)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernel = ctx.saved_tensors
        links: Links = ctx.links
        grad_features = grad_kernel = None
        grad = grad.contiguous()
        if ctx.needs_input_grad[0]:
            grad_features = _convolve(grad, kernel.transpose(1, 2), links.reversed())
        if ctx.needs_input_grad[1]:
            grad_kernel = _kernel_gradient(features, grad, links, kernel)
        return grad_features, grad_kernel, None


def _kernel_gradient(features: Tensor, grad: Tensor, links: Links, kernel: Tensor) -> Tensor:
    triton = _triton_for(features)
    if triton is not None:
        result = torch.zeros_like(kernel, dtype=torch.float32)
        for gather in links.forward:
            _add_taps(result, gather.taps, triton.weight_gradient(features, grad, gather))
        return result.to(kernel.dtype)
    kernels = _kernels_for(features)
    if kernels is not None:
        result, features = torch.zeros_like(kernel), features.contiguous()
        for gather in links.forward:
            gradient = autograd.weight_gradient(kernels, features, grad, gather)
            _add_taps(result, gather.taps, gradient)
        return result
    # Sums over chunks run in the precision of the parameter, not in that of the products.
    exact = torch.promote_types(kernel.dtype, torch.float32)
    result = torch.zeros_like(kernel, dtype=exact)
    padded = with_none_row(features)
    for gather in links.forward:
        total = result.new_zeros(len(gather.taps) * kernel.shape[1], kernel.shape[2])
        for rows, block in gathered_chunks(padded, gather):
            total += block.t() @ grad[rows]
        _add_taps(result, gather.taps, total.view(-1, *kernel.shape[1:]))
    return result.to(kernel.dtype)
