# SPDX-License-Identifier: Apache-2.0
"""The dense stage: a protocol, and the engines that fulfil it by name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import BackendError
from sparserefine_ros.records import DenseOutput


class Segmenter(Protocol):
    """A dense model ready to run.

    Attributes:
        description: engine, device and threads, for people.
    """

    description: str

    def __call__(self, low_res_image: NDArray[np.uint8]) -> DenseOutput:
        """Segment uint8 [h, w, 3] RGB, returning logits float32 [C, h, w].

        Features come along when the bundle's refiner or selector uses them.

        Raises:
            ModelOutputError: the model returned NaN, infinity or the wrong shape.
        """


Opener = Callable[..., Segmenter]

# Modules are imported only when their engine is chosen.
BACKENDS: Final[Mapping[str, str]] = {
    "onnxruntime": "sparserefine_ros.dense.onnxruntime",
}
DEFAULT_BACKEND: Final = "onnxruntime"


def open_segmenter(bundle: Bundle, *, backend: str, device: str, threads: int) -> Segmenter:
    """Load the dense model of a bundle.

    Args:
        bundle: verified bundle.
        backend: a name in `BACKENDS`, or "auto".
        device: "cpu".
        threads: threads of the engine; 0 for one per available core.

    Raises:
        BackendError: unknown backend or device, engine not installed, or model refused.
        BundleError: the model contradicts the bundle.
    """
    name = DEFAULT_BACKEND if backend == "auto" else backend
    if name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise BackendError(f"expected a dense backend out of {known}, got {backend!r}")
    if device != "cpu":
        raise BackendError(f"backend {name} runs on device cpu, got {device!r}; choose cpu")
    module = importlib.import_module(BACKENDS[name])
    opener: Opener = module.open_segmenter
    return opener(bundle, threads=threads or available_cores())


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
