# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for CUDA GPUs: sparse convolution, topology, fusion. Needs the package triton.

Nothing outside this room imports it before the engine is chosen.
"""
