# SPDX-License-Identifier: Apache-2.0
"""The executable `segment`: sets up the process, then runs the node."""

from __future__ import annotations

import os
import signal

from sparserefine_ros.openmp import spin_briefly


def main(args: list[str] | None = None) -> None:
    """Run the node until SIGINT or SIGTERM."""
    # Until the node has handlers of its own there is nothing to put in order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    spin_briefly()
    # Only now, for it imports PyTorch.
    from sparserefine_ros.ros import node

    node.main(args)


if __name__ == "__main__":
    main()
