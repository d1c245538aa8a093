# SPDX-License-Identifier: Apache-2.0
"""The sparse UNet on TorchSparse's convolutions (2.1), for comparison.

TorchSparse takes kernel maps that others have built, so our plan is used and its hash tables are
not: on a GPU as the table of its implicit GEMM, on the CPU as the pairs of its gather-scatter. Its
kernels are numbered as ours. It has no wheels; see docs/gpu.md for how to build it.

Shape legend: N input sites, M output sites of a convolution; P linked pairs.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

from sparserefine_ros.errors import BackendError
from sparserefine_ros.sparse.index import TAPS
from sparserefine_ros.sparse.plan import Links, SparsePlan
from sparserefine_ros.sparse.unet import SparseConv, SparseUNet

# Its implicit GEMM reads whole tiles of output rows.
_TILE: Final = 128
_NONE: Final = -1
_MIDDLE: Final = TAPS // 2


def _library() -> Any:
    try:
        backends = importlib.import_module("torchsparse.backends")
        # Attributes of its packages of that name are other modules.
        library = importlib.import_module("torchsparse.nn.functional.conv.func")
    except ImportError as err:
        raise BackendError(
            f"expected the package torchsparse for the engine torchsparse ({err}); build it from "
            "https://github.com/mit-han-lab/torchsparse, see docs/gpu.md"
        ) from err
    except (AssertionError, RuntimeError) as err:  # it asks for the GPU when it is imported
        raise BackendError(f"expected a GPU for the engine torchsparse: {err}") from err
    # Its float32 would be TF32 otherwise.
    backends.allow_tf32 = False  # type: ignore[attr-defined]
    return library


class TorchSparseUNet:
    """A trained `SparseUNet` on TorchSparse's convolutions; same results within rounding.

    Args:
        unet: trained weights, on the device to run on.
        dtype: of weights and features, float32 or float16.

    Raises:
        BackendError: TorchSparse is not installed, or there is no GPU for it.
    """

    def __init__(self, unet: SparseUNet, *, dtype: torch.dtype = torch.float32) -> None:
        if dtype != torch.float32 and not unet.head.weight.is_cuda:
            raise BackendError("expected a UNet on a GPU for the engine torchsparse-float16")
        self._dtype = dtype
        self._maps = _KernelMaps(_library())
        self._unet = copy.deepcopy(unet).eval().to(dtype)
        for module in list(self._unet.modules()):
            for name, child in module.named_children():
                if isinstance(child, SparseConv):
                    setattr(module, name, _Conv(child, self._maps))

    @torch.no_grad()
    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C]."""
        self._maps.clear()
        # It launches on the current device, whatever that of the tensors is.
        on_gpu = torch.cuda.device(features.device) if features.is_cuda else nullcontext()
        with on_gpu:
            return self._unet(features.to(self._dtype), plan).float()  # type: ignore[no-any-return]


class _Conv(nn.Module):
    def __init__(self, conv: SparseConv, maps: _KernelMaps) -> None:
        super().__init__()
        self.kernel, self._maps = conv.kernel, maps

    def forward(self, x: Tensor, links: Links) -> Tensor:
        if links.inputs == 0 or links.outputs == 0:
            return x.new_zeros(links.outputs, self.kernel.shape[2])
        run, kernel_map = self._maps.of(links)
        return run(x, self.kernel, kernel_map)[: links.outputs]


class _KernelMaps:
    """Kernel maps of the convolutions of one frame, made from its plan as they are asked for."""

    def __init__(self, library: Any) -> None:
        self._library = library
        # The links are kept so that their identity is not given to others.
        self._made: dict[int, tuple[Links, dict[str, Any]]] = {}

    def clear(self) -> None:
        self._made.clear()

    def of(self, links: Links) -> tuple[Callable[[Tensor, Tensor, dict[str, Any]], Tensor], Any]:
        """What convolves along the links, and the map it takes."""
        on_gpu = links.forward[0].table.is_cuda
        if id(links) not in self._made:
            made = _implicit_gemm_map(links) if on_gpu else _gather_scatter_map(links)
            self._made[id(links)] = links, made
        return self._implicit_gemm if on_gpu else self._gather_scatter, self._made[id(links)][1]

    def _implicit_gemm(self, x: Tensor, kernel: Tensor, kernel_map: dict[str, Any]) -> Tensor:
        function = self._library.ImplicitGEMMConvolutionFuntion
        return function.apply(x, kernel, kernel_map, {"ifsort": False}, False)  # type: ignore[no-any-return]

    def _gather_scatter(self, x: Tensor, kernel: Tensor, kernel_map: dict[str, Any]) -> Tensor:
        function, config = self._library.GatherScatterConvolutionFuntion, {"epsilon": 0.0}
        return function.apply(x, kernel, kernel_map, {**config, "mm_thresh": 0}, False)  # type: ignore[no-any-return]


def neighbour_table(links: Links) -> Tensor:
    """int32 [M, 9]: the input row of each output row and tap, -1 for none."""
    device = links.forward[0].table.device
    table = torch.full((links.outputs, TAPS), _NONE, dtype=torch.int32, device=device)
    for gather in links.forward:
        rows = slice(None) if gather.rows is None else gather.rows
        found = gather.table.masked_fill(gather.table == links.inputs, _NONE)
        for column, tap in enumerate(gather.taps):
            table[rows, tap] = found[:, column]
    return table


def _implicit_gemm_map(links: Links) -> dict[str, Any]:
    table = neighbour_table(links)
    padding = -len(table) % _TILE
    table = nn.functional.pad(table, (0, 0, 0, padding), value=_NONE)
    unused = (
        "reorder_out_in_map", "reduced_sorted_mask", "reorder_loc", "out_in_map_bwd",
        "reorder_out_in_map_bwd", "reduced_sorted_mask_bwd_wgrad", "reduced_sorted_mask_bwd_dgrad",
        "reorder_loc_bwd",
    )  # fmt: skip
    return {
        **dict.fromkeys(unused),
        "out_in_map": table.contiguous(),
        "sizes": (links.inputs, links.outputs),
    }


def _gather_scatter_map(links: Links) -> dict[str, Any]:
    """Pairs (input row, output row), int32 [P, 2], tap by tap."""
    table, outputs = neighbour_table(links), links.outputs
    if outputs == links.inputs and not _is_own(table[:, _MIDDLE]):
        # With as many outputs as inputs it takes the middle tap for the identity.
        outputs += 1
    per_tap = table.t()
    tap, row = (per_tap != _NONE).nonzero(as_tuple=True)
    return {
        "nbmaps": torch.stack([per_tap[tap, row], row.int()], 1).contiguous(),
        "nbsizes": torch.bincount(tap, minlength=TAPS).int(),
        "sizes": (links.inputs, outputs),
        "input_mask": None,
        "output_mask": None,
    }


def _is_own(column: Tensor) -> bool:
    return torch.equal(column, torch.arange(len(column), dtype=column.dtype))
