# SPDX-License-Identifier: Apache-2.0
"""cv_bridge, where it is installed and works."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image

_PROBE: Final = """
from cv_bridge import CvBridge
from sensor_msgs.msg import Image
message = Image(height=1, width=2, step=6, encoding="bgr8", data=[1, 2, 3, 4, 5, 6])
assert CvBridge().imgmsg_to_cv2(message, "rgb8").tolist() == [[[3, 2, 1], [6, 5, 4]]]
"""
_PROBE_LIMIT_S: Final = 30


@functools.cache
def cv_bridge_available() -> bool:
    """Whether cv_bridge converts a picture rightly with the installed NumPy; found out once.

    It is tried in a process of its own: built for NumPy 1 and run with NumPy 2, cv_bridge imports
    with a printed complaint and then ends the process with a segmentation fault.
    """
    if importlib.util.find_spec("cv_bridge") is None:
        return False
    probe = [sys.executable, "-c", _PROBE]
    try:
        result = subprocess.run(probe, capture_output=True, timeout=_PROBE_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


def bridge_to_rgb(message: Image) -> NDArray[np.uint8]:
    """Convert a well-formed message by cv_bridge.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous.
    """
    return np.ascontiguousarray(_bridge().imgmsg_to_cv2(message, desired_encoding="rgb8"), np.uint8)


@functools.cache
def _bridge() -> Any:
    from cv_bridge import CvBridge

    return CvBridge()
