# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 node around the pipeline, and what turns messages into arrays and back."""
