# SPDX-License-Identifier: Apache-2.0
"""How long the threads of the CPU kernels spin while they wait for one another.

GNU's OpenMP lets them spin for milliseconds before they sleep. Alone on the machine that is well
spent; where another process wants the cores, they burn the time that their own fellows need, and a
frame takes ten times as long. A short spin costs next to nothing and avoids that.
"""

from __future__ import annotations

import os
from typing import Final

SPIN_VARIABLE: Final = "GOMP_SPINCOUNT"

# Turns of the waiting loop; a few microseconds.
_TURNS: Final = "1000"


def spin_briefly() -> None:
    """Limit the spinning of this process, unless the environment says how long it shall be.

    OpenMP reads it when it is loaded, so this must run before PyTorch is imported.
    """
    os.environ.setdefault(SPIN_VARIABLE, _TURNS)
