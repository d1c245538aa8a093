# SPDX-License-Identifier: Apache-2.0
"""SparseRefine for ROS 2: semantic segmentation of large camera images.

A dense model runs at low resolution; where it is unsure, a sparse network refines the pixels at
full resolution; a learnt gate fuses both.
"""

__version__ = "0.1.0"
