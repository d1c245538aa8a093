# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM as an event that the main loop looks at."""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import time
from typing import Final

import rclpy
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.signals import SignalHandlerOptions

_SAME_REQUEST_S: Final = 2.0


def init_for_command() -> None:
    """Call rclpy.init() for a command that reads its own arguments, and that Ctrl-C ends as any."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)


def init_until_signal(args: list[str] | None) -> threading.Event:
    """Call rclpy.init() with signal handlers of our own.

    rclpy's would shut the context down at once; these leave time for a last message. A signal more
    than two seconds after the first ends the process at once; one before that is the same request
    twice: at Ctrl-C the terminal and `ros2 launch` both send one.

    Args:
        args: command line arguments for rclpy; None for those of the process.

    Returns:
        an event that the first signal sets.

    Raises:
        SystemExit: an argument of ROS is wrong, or names a file that is not there.
    """
    stop = threading.Event()
    requested_s: list[float] = []

    def request_stop(number: int, _frame: object) -> None:
        requested_s.append(time.monotonic())
        if len(requested_s) == 1:
            stop.set()  # once: a signal that comes while it is in there would wait for itself
        elif requested_s[-1] - requested_s[0] > _SAME_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except _rclpy.RCLError as err:
        sys.exit(f"expected arguments of ROS, cannot use these: {err}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    # At its end the interpreter restores the default, and a late Ctrl-C would look like a crash.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return stop
