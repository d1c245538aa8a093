# SPDX-License-Identifier: Apache-2.0
"""Dense segmenters: low-resolution image in, low-resolution logits out."""
