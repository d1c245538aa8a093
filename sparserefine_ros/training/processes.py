# SPDX-License-Identifier: Apache-2.0
"""Where training runs: one process or several, each on a GPU of its own or on the CPU.

Several processes are started by `torchrun` or `accelerate launch`, which tell each its rank in
environment variables. All of them see the same files; only the main process writes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import torch
from torch import nn

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.processor import available_cores, multiplies_bfloat16

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

_logger = logging.getLogger(__name__)

# Only the main process validates; the others wait for it so long.
_PATIENCE: Final = timedelta(hours=12)


def open_accelerator() -> Accelerator:
    """Join the other processes, where there are any, and take a device.

    Raises:
        ConfigurationError: the package accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError as err:
        raise ConfigurationError(
            "training needs the package accelerate; install it: pip install 'accelerate>=1.0'"
        ) from err
    # Precision is the recipe's choice, not that of the launcher's settings.
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def in_main_process(make: Callable[[], T]) -> T:
    """Call `make` in the main process while the others wait; every process returns its result.

    Needs an accelerator that is open; the result must be picklable.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    result = [make() if PartialState().is_main_process else None]
    return broadcast_object_list(result)[0]  # type: ignore[no-any-return]


def is_main_process() -> bool:
    """Whether this process writes files and shows progress, by the launcher's environment."""
    return os.environ.get("RANK", "0") == "0"


def can_use_bfloat16(device: torch.device) -> bool:
    """Whether mixed precision pays on a device; a warning says so where it does not."""
    if multiplies_bfloat16(device):
        return True
    if is_main_process():
        _logger.warning(
            "training in float32: %s does not multiply bfloat16 itself and would be many times "
            "slower",
            device,
        )
    return False


def threads_per_process() -> int:
    """Cores of this machine for each of the processes on it."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device
