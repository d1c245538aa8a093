# SPDX-License-Identifier: Apache-2.0
"""Data sets, label sets, transforms and procedural street scenes."""
