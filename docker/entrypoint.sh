#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run a command with ROS and this package on its paths.
set -e
# shellcheck disable=SC1090
source "/opt/ros/$ROS_DISTRO/setup.bash"
# shellcheck disable=SC1091
source /ws/install/setup.bash
exec "$@"
