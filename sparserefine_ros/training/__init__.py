# SPDX-License-Identifier: Apache-2.0
"""Training of dense networks and of refiners."""
