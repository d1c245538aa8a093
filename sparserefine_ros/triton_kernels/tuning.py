# SPDX-License-Identifier: Apache-2.0
"""Kernels whose tiles are chosen by measurement."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import torch
import triton
import triton.testing

from sparserefine_ros.processor import available_cores

# Triton 3.6 or newer.
COMPILES_SIDE_BY_SIDE: Final = (
    hasattr(triton, "AsyncCompileMode")
    and "ignore_errors" in inspect.signature(triton.AsyncCompileMode).parameters
)

# Float32 products are unrolled: large tiles take minutes to compile and spill registers.
_MOST_FLOAT32_PRODUCTS: Final = 64 * 64 * 32

Grid: TypeAlias = Callable[[Mapping[str, int]], tuple[int, ...]]


def size_class(count: int) -> int:
    """Row counts within a factor of four share what was measured."""
    return (count.bit_length() + 1) // 2


def suits_precision(configuration: triton.Config, dtype: torch.dtype) -> bool:
    """Whether a tile, all of whose sizes belong to one product, is worth trying."""
    products = math.prod(configuration.kwargs.values())
    return dtype != torch.float32 or products <= _MOST_FLOAT32_PRODUCTS


class TunedKernel:
    """A kernel that is launched with the tile that Triton's tuner chose for its kind of arguments.

    The tuner is asked once for each kind: what it does on every launch takes longer than the
    launch. What it measured is kept on disk where this Triton can do so. For one thread at a time.

    Args:
        kernel: as `triton.jit` returns it; its last argument at run time is a `size_class`.
        configurations: tiles to choose from.
        key: names of the arguments that a choice depends on, beside the types of all.
        prune: which of the tiles are worth trying, see `triton.autotune`.
    """

    def __init__(
        self,
        kernel: Any,
        configurations: Sequence[triton.Config],
        *,
        key: Sequence[str],
        prune: Callable[..., Sequence[triton.Config]],
    ) -> None:
        keeps = "cache_results" in inspect.signature(triton.autotune).parameters
        self._tuner: Any = triton.autotune(
            list(configurations), key=list(key), do_bench=self._measure,
            prune_configs_by={"early_config_prune": prune},
            **({"cache_results": True} if keeps else {}),
        )(kernel)  # fmt: skip
        self._chosen: dict[Hashable, Mapping[str, Any]] = {}
        self._compile_all: Callable[[], None] | None = None

    @property
    def kinds(self) -> int:
        """For how many kinds of arguments a tile has been chosen in this process."""
        return len(self._chosen)

    def launch(self, grid: Grid, *args: Any, **constants: Any) -> None:
        """Launch it, after choosing a tile where that was not done before.

        Args:
            grid: of the chosen tile.
            args: of the kernel.
            constants: compile-time constants.
        """
        types = [arg.dtype if isinstance(arg, torch.Tensor) else None for arg in args]
        kind = (args[-1], *constants.values(), *types)
        chosen = self._chosen.get(kind)
        if chosen is not None:
            self._tuner.fn[grid](*args, **constants, **chosen)
            return
        self._compile_all = lambda: self._compile_side_by_side(grid, args, constants)
        try:
            self._tuner[grid](*args, **constants)
        finally:
            # After a launch that failed, the tuner would keep its tensors in memory.
            self._tuner.nargs = self._compile_all = None
        self._chosen[kind] = self._tuner.best_config.all_kwargs()

    def _measure(self, call: Callable[[], None], quantiles: Sequence[float]) -> Any:
        """Try a tile for some 25 ms; before the first of them, compile all."""
        if self._compile_all is not None:
            compile_all, self._compile_all = self._compile_all, None
            compile_all()
        return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)

    def _compile_side_by_side(
        self, grid: Grid, args: Sequence[Any], constants: Mapping[str, Any]
    ) -> None:
        """On all cores, where this Triton can; the tuner meets again what does not compile."""
        if not COMPILES_SIDE_BY_SIDE:
            return
        with (
            ThreadPoolExecutor(available_cores()) as pool,
            triton.AsyncCompileMode(pool, ignore_errors=True),
        ):
            for choice in self._tuner.prune_configs(constants):
                self._tuner.fn.run(
                    *args, grid=grid, warmup=True, **constants, **choice.all_kwargs()
                )
