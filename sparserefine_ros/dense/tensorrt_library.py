# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT for RTX behind one record: import, version, what it says, build target."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch

from sparserefine_ros.dense.backends import NOT_FOR_RTX, installed_package
from sparserefine_ros.errors import BackendError

logger = logging.getLogger(__name__)

_INSTALL: Final = {
    "tensorrt": "pip install 'tensorrt>=10'",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
}
OLDEST_MAJOR: Final = {"tensorrt": 10, "tensorrt_rtx": 1}
PORTABLE: Final = "portable, compute capability 8.0 and later"
TURING: Final = (7, 5)

_listening: Final = threading.Lock()


@dataclass(frozen=True)
class Library:
    """One TensorRT flavour, imported.

    Attributes:
        flavour: "tensorrt" or "tensorrt_rtx".
        trt: the Python module.
        log: the one logger that this process gives to TensorRT.
    """

    flavour: str
    trt: Any
    log: Any

    @property
    def version(self) -> str:
        """Version of the library; an engine runs on the version that built it."""
        return str(self.trt.__version__)

    @property
    def portable(self) -> bool:
        """Whether engines are built without a GPU, for any that is new enough."""
        return self.flavour == "tensorrt_rtx"

    @contextlib.contextmanager
    def complaints(self) -> Iterator[list[str]]:
        """The errors that TensorRT logs meanwhile, first cause first."""
        heard: list[str] = []
        with _listening:
            self.log.listeners.append(heard)
        try:
            yield heard
        finally:
            with _listening:  # lists of other threads may be equal to this one
                self.log.listeners[:] = [each for each in self.log.listeners if each is not heard]


@functools.cache
def load_library(flavour: str) -> Library:
    """Import a flavour.

    Raises:
        BackendError: it is not installed, too old, or its libraries do not load.
    """
    trt = _import(flavour)
    major = int(str(trt.__version__).partition(".")[0])
    if major < OLDEST_MAJOR[flavour]:
        raise BackendError(
            f"expected {flavour} {OLDEST_MAJOR[flavour]} or newer, got {trt.__version__}; "
            f"run: {_INSTALL[flavour]}"
        )
    return Library(flavour, trt, _make_log(trt))


def _import(flavour: str) -> Any:
    name = installed_package(flavour)
    if name is None:
        raise BackendError(f"backend {flavour} is not installed; run: {_INSTALL[flavour]}")
    try:
        return importlib.import_module(name)
    except Exception as err:  # the package raises RuntimeError, OSError or ImportError
        raise BackendError(
            f"backend {flavour} does not load: {err}; run: {_INSTALL[flavour]}"
        ) from err


def _make_log(trt: Any) -> Any:
    """TensorRT keeps the first logger it is given for the whole process: there is one."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.listeners: list[list[str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                for heard in list(self.listeners):
                    heard.append(message)
            logger.debug("%s", message)

    return Log()


def build_target(
    library: Library, device: torch.device | None, capability: tuple[int, int] | None = None
) -> str:
    """For which GPUs an engine is built, in words that tell two targets apart.

    TensorRT for RTX builds one engine for every GPU since Ampere, without a GPU at hand, and one
    for Turing; TensorRT builds for the GPU it finds.

    Args:
        library: the flavour.
        device: the GPU of this machine; None where there is none.
        capability: compute capability to build for instead; TensorRT for RTX only.

    Raises:
        BackendError: it cannot build for this target.
    """
    if not library.portable:
        if device is None or capability is not None:
            raise BackendError(
                f"backend {library.flavour} builds for the GPU of this machine only"
                + ("; build where there is one" if device is None else "")
                + ", or use tensorrt_rtx"
            )
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    if capability is None and device is not None:
        capability = torch.cuda.get_device_capability(device)
    if capability in NOT_FOR_RTX:
        raise BackendError(
            f"expected a GPU that {library.flavour} is made for, got compute capability "
            f"{capability[0]}.{capability[1]}; use backend tensorrt there"
        )
    if capability is None or capability >= (8, 0):
        return PORTABLE
    if capability < TURING:
        raise BackendError(
            f"expected a GPU of compute capability 7.5 or later for {library.flavour}, got "
            f"{capability[0]}.{capability[1]}; use backend onnxruntime"
        )
    return "compute capability 7.5"


def describe_validity(library: Library, engine: bytes) -> str:
    """What the library says of an engine before loading it; empty where it does not object.

    Without a GPU it tells damaged files and other versions only.
    """
    if not hasattr(library.trt.Runtime, "get_engine_validity"):
        return ""
    trt = library.trt
    validity, diagnostics = trt.Runtime(library.log).get_engine_validity(engine)
    if validity != trt.EngineValidity.INVALID:
        return ""
    reasons = [
        name.lower().replace("_", " ")
        for name, bit in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(bit) & int(diagnostics)
    ]
    if reasons:
        return ", ".join(reasons)
    # Without a GPU it calls every engine invalid, a sound one for no reason.
    return "refused without a reason" if torch.cuda.is_available() else ""
