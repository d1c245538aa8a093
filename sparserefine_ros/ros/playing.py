# SPDX-License-Identifier: Apache-2.0
"""The process of a node that plays something to its end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

import rclpy

from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.ros.middleware import configure_middleware
from sparserefine_ros.ros.stopping import init_until_signal


class PlayingNode(Protocol):
    """A node with something to play."""

    def play(self, stop: threading.Event) -> int:
        """Publish until the end or until `stop` is set; return how many pictures."""

    def close(self) -> None:
        """Let go of what is played."""

    def destroy_node(self) -> object:
        """See rclpy."""


def play_until_signal(
    make_node: Callable[[], PlayingNode], name: str, args: list[str] | None
) -> int:
    """Play to the end, or until SIGINT or SIGTERM.

    Args:
        make_node: constructs the node, once rclpy is initialised.
        name: of its logger.
        args: of the command line; None for the process's.

    Returns:
        exit code: 0, or 1 when the source or a parameter is unusable.
    """
    middleware = configure_middleware()
    stop = init_until_signal(args)
    logger = rclpy.logging.get_logger(name)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(rclpy.try_shutdown)
        try:
            node = make_node()
            cleanup.callback(node.destroy_node)
            cleanup.callback(node.close)
            logger.info(middleware)
            published = node.play(stop)
        except SparseRefineError as err:
            logger.fatal(str(err))
            return 1
    logger.info(f"published {published} pictures")
    return 0
