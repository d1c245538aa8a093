# SPDX-License-Identifier: Apache-2.0
"""Oracles: stages of an ablation that look at the labels to show what a perfect choice would give.

SparseRefine, tables 5a and 5e.
"""

from __future__ import annotations

from typing import TypeVar

from sparserefine_ros.errors import ConfigurationError

Truth = TypeVar("Truth")


def truth_for_oracle(truth: Truth | None, stage: str) -> Truth:
    """The labels, which an oracle cannot do without.

    Raises:
        ConfigurationError: there are none.
    """
    if truth is None:
        raise ConfigurationError(
            f"expected labelled pictures for the oracle {stage}, got one without labels; an oracle "
            "serves evaluation only, choose another"
        )
    return truth
