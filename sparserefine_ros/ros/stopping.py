# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM as an event that the main loop looks at."""

from __future__ import annotations

import signal
import threading

import rclpy
from rclpy.signals import SignalHandlerOptions


def init_until_signal(args: list[str] | None) -> threading.Event:
    """Call rclpy.init() with signal handlers of our own.

    rclpy's would shut the context down at once; these leave time for a last message. A second
    signal ends the process at once.

    Args:
        args: command line arguments for rclpy; None for those of the process.

    Returns:
        an event that the first signal sets.
    """
    stop = threading.Event()

    def request_stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    return stop
