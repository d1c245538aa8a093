# SPDX-License-Identifier: Apache-2.0
"""Products and rounding that give the same in Triton's interpreter as on a GPU.

The interpreter of Triton 3.9 multiplies the bit patterns of bfloat16 and cuts float32 off where a
GPU rounds to the nearest bfloat16, ties to even.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from sparserefine_ros.triton_kernels.runtime import INTERPRETED

_INTERPRETED: Final = tl.constexpr(INTERPRETED)


@triton.jit
def multiply_add(a, b, acc):
    """Acc + a @ b in float32; float32 operands are not rounded to TF32."""
    if _INTERPRETED and a.dtype == tl.bfloat16:
        # In float32 the products of bfloat16 are exact.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """Float32 to the nearest number of another precision."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        value = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(dtype)
