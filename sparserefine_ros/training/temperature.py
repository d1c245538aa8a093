# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017).

Divided by one number, logits keep their order and their labels, and their probabilities change. The
number is the one at which they are as sure, on average, as they are right (Clarte et al.,
"Expectation consistency for calibration of neural networks", 2023). The one that makes the labels
likeliest weighs a few wrong but sure pixels more, and leaves a larger calibration error.

Shape legend: N pixels; C classes.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from sparserefine_ros.data.datasets import IGNORED_LABEL

# Beyond these the labels are no evidence of how sure one may be: all of them right, or none.
_LOWEST: Final = 0.2
_HIGHEST: Final = 5.0
_STEPS: Final = 30


def fit_temperature(logits: Tensor, truth: Tensor) -> float:
    """The temperature at which the mean top probability is the accuracy; 0.2 .. 5.

    The mean falls with the temperature, so that bisection finds it. Without a labelled pixel the
    temperature is 1.

    Args:
        logits: float32 [N, C].
        truth: class ids, integers [N]; 255 is ignored.
    """
    labelled = truth != IGNORED_LABEL
    z, right = logits[labelled], truth[labelled].long()
    if len(z) == 0:
        return 1.0
    accuracy = float((z.argmax(1) == right).double().mean())
    low, high = _LOWEST, _HIGHEST
    for _ in range(_STEPS):
        middle = float((low * high) ** 0.5)
        if float((z / middle).softmax(1).amax(1).double().mean()) > accuracy:
            low = middle
        else:
            high = middle
    return float((low * high) ** 0.5)
