# SPDX-License-Identifier: Apache-2.0
"""Weights trained elsewhere, into the networks of this package."""
