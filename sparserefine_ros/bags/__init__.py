# SPDX-License-Identifier: Apache-2.0
"""Recordings (rosbag2): reading, writing and evaluation, without a ROS installation."""
