# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on the selected pixels: topology, layers, networks, inference."""
