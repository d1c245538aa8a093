# SPDX-License-Identifier: Apache-2.0
"""Ablations: which choice of the method is worth what (SparseRefine, section 4.3)."""
