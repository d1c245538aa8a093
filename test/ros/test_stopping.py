# SPDX-License-Identifier: Apache-2.0
"""One request to stop may come as two signals; an impatient one ends a process that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

PROGRAM = """
import time
from sparserefine_ros.ros import stopping
stopping._SAME_REQUEST_S = {grace}
stop = stopping.init_until_signal([])
print("ready", flush=True)
stop.wait()
time.sleep({work})
print("done", flush=True)
"""


def start(*, grace: float, work: float) -> subprocess.Popen[str]:
    code = PROGRAM.format(grace=grace, work=work)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_same_request_twice_ends_in_order() -> None:
    process = start(grace=30.0, work=0.5)
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "done\n")


def test_a_later_signal_ends_a_process_that_hangs() -> None:
    process = start(grace=0.1, work=60.0)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (-signal.SIGINT, "")


def test_a_node_that_still_imports_ends_at_once() -> None:
    code = """
import sys, time
from sparserefine_ros.ros import segment
class Node:
    @staticmethod
    def main(args):
        print("importing", flush=True)
        time.sleep(60)
sys.modules["sparserefine_ros.ros.node"] = Node
import sparserefine_ros.ros
sparserefine_ros.ros.node = Node
segment.main([])
"""
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")


def test_a_signal_in_the_middle_of_another_does_not_wait_for_it() -> None:
    code = """
import signal, threading
class Event(threading.Event):
    def set(self):
        with self._cond:  # as Event does, with a signal that comes at the worst moment
            signal.raise_signal(signal.SIGINT)
            self._flag = True
            self._cond.notify_all()
threading.Event = Event
from sparserefine_ros.ros import stopping
stop = stopping.init_until_signal([])
signal.raise_signal(signal.SIGTERM)
assert stop.is_set()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "done\n", done.stderr


def test_wrong_arguments_of_ros_are_one_line() -> None:
    words = ["--ros-args", "--params-file", "/nowhere/own.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "sparserefine_ros.ros.camera", *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "expected arguments of ROS, cannot use these" in done.stderr
    assert "/nowhere/own.yaml" in done.stderr
    assert "Traceback" not in done.stderr
