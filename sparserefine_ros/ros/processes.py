# SPDX-License-Identifier: Apache-2.0
"""Starts the package's nodes as processes of their own, cut off from other ROS traffic."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sparserefine_ros.errors import SparseRefineError

_STOP_TIMEOUT_S: Final = 10.0


def isolate() -> None:
    """Keep this process and its children on this machine, in a ROS domain of their own.

    What the user has set already is left alone. Call before rclpy.init().
    """
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))


class NodeProcess:
    """A running node.

    Attributes:
        name: module it was started from.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Any) -> None:
        self.name = name
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def log(self) -> str:
        """What it has printed so far."""
        self._log.seek(0)
        return str(self._log.read().decode(errors="replace"))

    def check_running(self) -> None:
        """Raise SparseRefineError with its output when it has ended."""
        if self.exit_code is not None:
            raise SparseRefineError(
                f"{self.name} ended with exit code {self.exit_code}:\n{self.log()}"
            )

    def stop(self) -> None:
        """Interrupt it as Ctrl-C does and wait; kill it when it does not end."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def start_node(
    module: str,
    *,
    parameters: Mapping[str, str | int | float | bool],
    remaps: Mapping[str, str],
) -> Iterator[NodeProcess]:
    """Run `python -m MODULE` with ROS parameters and remaps until the block ends."""
    arguments = ["--ros-args"]
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ["-p", f"{name}:={text}"]
    for source, target in remaps.items():
        arguments += ["-r", f"{source}:={target}"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches only this process, which then stops the others in order.
            start_new_session=True,
        )
        node = NodeProcess(module, process, log)
        try:
            yield node
        finally:
            node.stop()
