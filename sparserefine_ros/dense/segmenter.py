# SPDX-License-Identifier: Apache-2.0
"""The dense stage: a protocol, and the engines that fulfil it by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.backends import BACKENDS, choose_backend, require_precision
from sparserefine_ros.dense.devices import device_kind
from sparserefine_ros.dense.options import (
    DEFAULT_ENGINE,
    DenseOptions,
    EngineOptions,
    Report,
    silent,
)
from sparserefine_ros.errors import BackendError
from sparserefine_ros.processor import available_cores
from sparserefine_ros.records import DenseOutput


class Segmenter(Protocol):
    """A dense model ready to run.

    Attributes:
        description: engine, device and threads, for people.
    """

    description: str

    def __call__(self, low_res_images: Sequence[NDArray[np.uint8]]) -> list[DenseOutput]:
        """Segment pictures of one size together, each uint8 [h, w, 3] RGB.

        There are one to `EngineOptions.max_batch` of them. Each yields logits float32 [C, h, w].
        Features come along when the bundle's refiner or selector uses them. All of it lies on the
        CPU, wherever the model ran, unless it was opened with `on_device`.

        Raises:
            ModelOutputError: the model returned NaN, infinity or the wrong shape.
        """


Opener = Callable[[Bundle, DenseOptions, Report], Segmenter]


def open_segmenter(
    bundle: Bundle,
    *,
    backend: str,
    device: str,
    threads: int,
    engine: EngineOptions = DEFAULT_ENGINE,
    on_device: bool = False,
    report: Report = silent,
) -> Segmenter:
    """Load the dense model of a bundle.

    Args:
        bundle: verified bundle.
        backend: a name in `BACKENDS`, or "auto".
        device: "cpu", "cuda" or "cuda:N".
        threads: threads of the engine; 0 for one per available core.
        engine: how the engine is made from the model.
        on_device: whether results may stay on the GPU.
        report: gets a line now and then while an engine is built.

    Raises:
        BackendError: unknown backend, device or precision, engine not installed, no such GPU, or
            model refused.
        BundleError: the model contradicts the bundle.
    """
    choice = choose_backend(bundle, backend, device, engine)
    how = DenseOptions(choice.backend, device, threads or available_cores(), engine, on_device)
    try:
        segmenter = _open(bundle, how, report)
    except BackendError as err:
        if not choice.reason:
            raise
        raise BackendError(f"{err} (backend {choice.annotate(choice.backend)})") from err
    segmenter.description = choice.annotate(segmenter.description)
    return segmenter


def _open(bundle: Bundle, how: DenseOptions, report: Report) -> Segmenter:
    name, device = how.backend, how.device
    known = BACKENDS[name]
    if device_kind(device) not in known.devices:
        raise BackendError(
            f"backend {name} runs on device {' or '.join(known.devices)}, got {device!r}; "
            f"choose {known.devices[0]}"
        )
    require_precision(name, how.engine.precision)
    opener: Opener = importlib.import_module(known.module).open_segmenter
    return opener(bundle, how, report)
