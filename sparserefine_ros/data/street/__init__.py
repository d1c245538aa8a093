# SPDX-License-Identifier: Apache-2.0
"""Procedural street scenes with pixel-exact labels, at any size."""

from sparserefine_ros.data.street.scene import (
    CLASS_COLOURS,
    CLASS_NAMES,
    LARGEST_PX,
    SMALLEST_PX,
    StreetFrame,
    StreetScene,
)

__all__ = [
    "CLASS_COLOURS",
    "CLASS_NAMES",
    "LARGEST_PX",
    "SMALLEST_PX",
    "StreetFrame",
    "StreetScene",
]
