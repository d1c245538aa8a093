# SPDX-License-Identifier: Apache-2.0
"""The executable `segment`: sets up the process, then runs the node."""

from __future__ import annotations

from sparserefine_ros.openmp import spin_briefly


def main(args: list[str] | None = None) -> None:
    """Run the node until SIGINT or SIGTERM."""
    spin_briefly()
    # Only now, for it imports PyTorch.
    from sparserefine_ros.ros import node

    node.main(args)


if __name__ == "__main__":
    main()
