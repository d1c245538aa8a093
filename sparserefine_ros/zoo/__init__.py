# SPDX-License-Identifier: Apache-2.0
"""Dense baselines by name."""
