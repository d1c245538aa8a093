# SPDX-License-Identifier: Apache-2.0
"""The moving average of the trained weights, which is what is validated and kept."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# Steps that count for one at the begin: without them, the random weights that a training begins
# with would stay in the average for several times 1 / (1 - decay) steps.
_WARMUP: Final = 10.0


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of a module whose weights and buffers follow it.

    Args:
        module: what it follows, on the device it is trained on.
        decay: share of the average that stays at each step, 0 .. 1; after n steps it is at most
            (1 + n) / (10 + n).
    """

    def follow(averages: Any, current: Any, steps: Tensor | int) -> None:
        count = float(steps)
        share = min(decay, (1.0 + count) / (_WARMUP + count))
        get_ema_multi_avg_fn(share)(averages, current, steps)  # type: ignore[no-untyped-call]

    return AveragedModel(module, multi_avg_fn=follow, use_buffers=True)
