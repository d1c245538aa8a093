# SPDX-License-Identifier: Apache-2.0
"""Scores in words and digits, the same in a terminal and on a page."""

from __future__ import annotations

import math

from sparserefine_ros.evaluation.evaluation import Evaluation


def percent(share: float) -> str:
    """A share 0 .. 1 in percent; - for NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.2f}"


def _share(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def describe_selection(evaluation: Evaluation) -> str:
    """How many frames, and which of their pixels were refined."""
    score, setting, done = evaluation.tally.selection, evaluation.setting, len(evaluation.frames)
    frames = f"{done} of {setting.frames} frames" if done < setting.frames else f"{done} frames"
    if setting.selector.kind == "none":
        return f"{frames}. Nothing refined: the bundle has no refiner"
    return (
        f"{frames}. Selector: {setting.selector}: density {score.density:.1%}, "
        f"recall {_share(score.recall)}, precision {_share(score.precision)}"
    )
