# SPDX-License-Identifier: Apache-2.0
"""Compiled CPU kernels: sparse convolution, fusion, entropy and topology."""
