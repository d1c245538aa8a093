# SPDX-License-Identifier: Apache-2.0
"""Recordings for the Rerun viewer, on the desktop or in a browser: no RViz, no ROS installation."""
