# SPDX-License-Identifier: Apache-2.0
"""A DDS domain of its own for each test run, and nodes that end with their test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from ros.harness import Peer, Stage

os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("ROS_LOG_DIR", tempfile.mkdtemp(prefix="ros_log_"))


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
