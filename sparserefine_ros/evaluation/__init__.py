# SPDX-License-Identifier: Apache-2.0
"""Metrics, data set evaluation and the benchmark."""
