# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM as an event that the main loop looks at."""

from __future__ import annotations

import atexit
import signal
import threading
import time
from typing import Final

import rclpy
from rclpy.signals import SignalHandlerOptions

_SAME_REQUEST_S: Final = 2.0


def init_until_signal(args: list[str] | None) -> threading.Event:
    """Call rclpy.init() with signal handlers of our own.

    rclpy's would shut the context down at once; these leave time for a last message. A signal more
    than two seconds after the first ends the process at once; one before that is the same request
    twice: at Ctrl-C the terminal and `ros2 launch` both send one.

    Args:
        args: command line arguments for rclpy; None for those of the process.

    Returns:
        an event that the first signal sets.
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

    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    # At its end the interpreter restores the default, and a late Ctrl-C would look like a crash.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return stop
