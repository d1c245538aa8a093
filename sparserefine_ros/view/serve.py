# SPDX-License-Identifier: Apache-2.0
"""The Rerun viewer for a browser on this machine, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sparserefine_ros.errors import BackendError, ConfigurationError
from sparserefine_ros.view.library import rerun_module

DEFAULT_PORT: Final = 9090

_HOST: Final = "127.0.0.1"  # no other machine reaches it
_MAGIC: Final = b"RRF"  # how recordings begin, whatever their version
_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 5.0


class Viewer:
    """A running server of pages.

    Attributes:
        url: what to open in a browser.
    """

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Any) -> None:
        self.url = url
        self._process = process
        self._log = log

    def wait(self) -> None:
        """Wait until it ends, which it does not by itself.

        Raises:
            BackendError: it ended.
        """
        self._process.wait()
        raise self._ended()

    def wait_until_ready(self, port: int) -> None:
        """Wait until it answers.

        Raises:
            BackendError: it ended, or does not answer in time.
        """
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise self._ended()
            with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
                return
            time.sleep(0.1)
        raise BackendError(
            f"expected the rerun viewer to answer on port {port} within {_START_TIMEOUT_S:.0f} s, "
            f"it did not; it printed:\n{self._output()}"
        )

    def stop(self) -> None:
        """End it and what it started."""
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)

    def _ended(self) -> BackendError:
        return BackendError(
            f"expected the rerun viewer to run until it is stopped, it ended with exit code "
            f"{self._process.returncode}; it printed:\n{self._output()}"
        )

    def _output(self) -> str:
        self._log.seek(0)
        return str(self._log.read().decode(errors="replace"))


def free_port(port: int) -> int:
    """The port itself, if nothing listens on it; for 0, some free one.

    Raises:
        ConfigurationError: it is taken, or no port.
    """
    with socket.socket() as probe:
        # As the viewer does: a port whose last connections are not forgotten yet is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as err:
            raise ConfigurationError(
                f"expected a free port on {_HOST}, cannot take {port} ({err}); "
                "choose another with --port, or 0 for any"
            ) from err
        return int(probe.getsockname()[1])


@contextmanager
def serve(recording: Path, *, port: int = DEFAULT_PORT) -> Iterator[Viewer]:
    """Serve a recording and the viewer on 127.0.0.1 until the block ends.

    Args:
        recording: an .rrd file.
        port: of the page; 0 for any. The data go over another, free one.

    Raises:
        BackendError: the library rerun is not installed, or its viewer does not start.
        ConfigurationError: there is no such recording, or the port is taken.
    """
    if not recording.is_file():
        raise ConfigurationError(
            f"expected a recording, there is no file {recording}; "
            "make one with sparserefine view SOURCE"
        )
    with recording.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ConfigurationError(
                f"expected a recording of the viewer, {recording} is none; "
                "make one with sparserefine view SOURCE"
            )
    rerun_module("rerun_cli")
    port, data_port = free_port(port), free_port(0)
    command = [sys.executable, "-m", "rerun_cli", "--serve-web", "--bind", _HOST]
    command += ["--web-viewer-port", str(port), "--port", str(data_port), str(recording)]
    data = quote(f"rerun+http://{_HOST}:{data_port}/proxy", safe="")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A group of its own: the command starts the viewer as a process below it.
            start_new_session=True,
        )
        viewer = Viewer(f"http://{_HOST}:{port}/?url={data}", process, log)
        try:
            viewer.wait_until_ready(port)
            yield viewer
        finally:
            viewer.stop()


def serve_until_interrupted(recording: Path, *, port: int = DEFAULT_PORT) -> None:
    """Serve a recording, say where, and return at Ctrl-C, SIGTERM or when the terminal closes.

    Raises:
        BackendError, ConfigurationError: see `serve`.
    """
    ends = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(end, signal.default_int_handler) for end in ends]
    try:
        with serve(recording, port=port) as viewer:
            print(f"open {viewer.url}\nCtrl-C ends it", flush=True)
            viewer.wait()
    except KeyboardInterrupt:
        print("ended")
    finally:
        for end, handler in zip(ends, before, strict=True):
            signal.signal(end, handler)
