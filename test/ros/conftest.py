# SPDX-License-Identifier: Apache-2.0
"""A DDS domain of its own for each test run, and nodes that end with their test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from ros.harness import Peer, Stage

from sparserefine_ros.ros.middleware import profile_names

os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("ROS_LOG_DIR", tempfile.mkdtemp(prefix="ros_log_"))

PROFILE_VARIABLE, _ = profile_names()
PROFILE = """<dds xmlns="http://www.eprosima.com">
  <library_settings><intraprocess_delivery>OFF</intraprocess_delivery></library_settings>
</dds>
"""


def without_intraprocess_delivery() -> None:
    """Let the nodes of this process meet through transports only, as those of a robot do.

    Several participants in one process that call each other directly can lock each other out
    when a killed process is noticed (eProsima/Fast-DDS issue 6502). The settings are read with
    the first participant; the processes that the tests start keep their own.
    """
    own = os.environ.get(PROFILE_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[PROFILE_VARIABLE] = str(Path(folder) / "profile.xml")
        Path(os.environ[PROFILE_VARIABLE]).write_text(PROFILE, encoding="utf-8")
        context = Context()
        rclpy.init(context=context)
        Node("settings", context=context).destroy_node()
        context.try_shutdown()
        del os.environ[PROFILE_VARIABLE]
    if own is not None:
        os.environ[PROFILE_VARIABLE] = own


without_intraprocess_delivery()


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Nodes created through it are stopped after the test."""
    made = Stage()
    yield made
    made.clear()


@pytest.fixture
def peer(stage: Stage) -> Peer:
    """The other side of the node under test."""
    return stage.add(Peer)
