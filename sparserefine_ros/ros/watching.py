# SPDX-License-Identifier: Apache-2.0
"""What a command knows of a node that it has started, by the node's diagnostics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import Executor

from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.ros.processes import NodeProcess

TIMEOUT_S: Final = 60.0
_SPIN_S: Final = 0.05


class NodeStatus:
    """The last diagnostics; `take` is for a subscription to them.

    Attributes:
        state: lifecycle state of the node.
        failure: why it cannot be configured; empty unless it tells.
        messages: how many diagnostics have come.
        values: of each status that counts frames, by its name.
    """

    def __init__(self) -> None:
        self.state, self.failure, self.messages = "unknown", "", 0
        self.values: dict[str, dict[str, str]] = {}

    def take(self, message: DiagnosticArray) -> None:
        """Note what a message tells."""
        self.messages += 1
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            self.state = values.get("state", self.state)
            if values.get("state") == "unconfigured" and status.level == DiagnosticStatus.ERROR:
                self.failure = status.message
            if "received" in values:
                self.values[status.name] = values


def spin_until(
    executor: Executor, met: Callable[[], bool], timeout_s: float, *processes: NodeProcess
) -> bool:
    """Spin until `met()`; returns whether it was in time.

    Raises:
        SparseRefineError: one of the processes has ended with an error.
    """
    end_s = time.monotonic() + timeout_s
    while not met() and time.monotonic() < end_s:
        executor.spin_once(timeout_sec=_SPIN_S)
        for process in processes:
            process.check_running()
    return met()


def wait_until_active(executor: Executor, status: NodeStatus, node: NodeProcess) -> None:
    """Spin until the node is active, for as long as it builds an engine.

    Raises:
        SparseRefineError: it cannot be configured, has ended, or does not say that it is active.
    """

    def decided() -> bool:
        return status.state == "active" or bool(status.failure)

    decided_in_time = spin_until(executor, decided, TIMEOUT_S, node)
    while not decided_in_time and status.state.startswith("configuring"):
        decided_in_time = spin_until(executor, decided, TIMEOUT_S, node)
    if status.failure:
        raise SparseRefineError(f"the node cannot start: {status.failure}")
    if not decided_in_time:
        raise SparseRefineError(f"the node was not active within {TIMEOUT_S:.0f} s:\n{node.log()}")


def spin_for(executor: Executor, seconds: float, *processes: NodeProcess) -> None:
    """Spin for so long.

    Raises:
        SparseRefineError: one of the processes has ended with an error.
    """
    end_s = time.monotonic() + seconds
    spin_until(executor, lambda: time.monotonic() >= end_s, math.inf, *processes)
