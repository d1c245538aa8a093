# SPDX-License-Identifier: Apache-2.0
"""The execution providers of ONNX Runtime that a backend stands for, best first.

With TensorRT's provider ONNX Runtime builds engines of the parts of the model that TensorRT takes,
runs the rest by CUDA, and keeps the engines in our cache folder by rules of its own.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.devices import device_kind, require_gpu
from sparserefine_ros.dense.engine_builder import Shape
from sparserefine_ros.dense.engine_cache import EngineCache
from sparserefine_ros.dense.engines import network_shapes
from sparserefine_ros.dense.options import DenseOptions
from sparserefine_ros.errors import BackendError

CPU_PROVIDER: Final = "CPUExecutionProvider"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"

Providers = list[tuple[str, dict[str, str]]]


_INSTALL_CUDA: Final = "run: pip uninstall onnxruntime && pip install onnxruntime-gpu"


@dataclass(frozen=True)
class _TensorRt:
    """A TensorRT provider.

    Attributes:
        provider: its name.
        package: of Python, that brings TensorRT.
        prefix: of its options.
        install: what to do for an ONNX Runtime with it.
    """

    provider: str
    package: str
    prefix: str
    install: str

    def options(
        self, shapes: Sequence[Shape], name: str, folder: str, *, half: bool
    ) -> dict[str, str]:
        """Shape profile and cache; `shapes` is one, or smallest, usual and largest."""
        lowest, usual, highest = shapes if len(shapes) == 3 else (shapes[0],) * 3
        profile = {"min": lowest, "opt": usual, "max": highest}
        options = {
            f"{self.prefix}_profile_{which}_shapes": f"{name}:{'x'.join(map(str, shape))}"
            for which, shape in profile.items()
        }
        if self.prefix == "trt":
            return {
                **options,
                "trt_fp16_enable": str(int(half)),
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": folder,
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": folder,
            }
        return {**options, "nv_runtime_cache_path": folder}


_TENSORRT: Final = {
    "onnxruntime_tensorrt": _TensorRt(
        "TensorrtExecutionProvider",
        "tensorrt",
        "trt",
        f"{_INSTALL_CUDA} 'tensorrt>=10'",
    ),
    "onnxruntime_tensorrt_rtx": _TensorRt(
        "NvTensorRTRTXExecutionProvider",
        "tensorrt_rtx",
        "nv",
        "build ONNX Runtime with --use_nv_tensorrt_rtx (https://onnxruntime.ai/docs/build/eps.html)",
    ),
}


def choose_providers(
    bundle: Bundle, how: DenseOptions, available: Sequence[str], input_of: Callable[[], str]
) -> Providers:
    """Providers and their options; the first is the one asked for.

    Args:
        bundle: the bundle.
        how: backend, device, and how engines are made.
        available: what this ONNX Runtime has.
        input_of: finds the name of the model's input; called where engines are made.

    Raises:
        BackendError: this ONNX Runtime has no such provider, there is no such GPU, the engine must
            not be built, its cache cannot be written, or the sizes of the pictures are needed and
            not known.
    """
    if device_kind(how.device) == "cpu":
        return [(CPU_PROVIDER, {})]
    tensorrt = _TENSORRT.get(how.backend)
    provider = tensorrt.provider if tensorrt else CUDA_PROVIDER
    if provider not in available:
        raise BackendError(
            f"expected an ONNX Runtime with {provider} for device {how.device}, this one has "
            f"{', '.join(available)}; {tensorrt.install if tensorrt else _INSTALL_CUDA}"
        )
    if tensorrt is not None:
        with contextlib.suppress(ImportError):
            # It loads the library that the provider links to, where the loader does not look.
            importlib.import_module(tensorrt.package)
    with contextlib.suppress(AttributeError):  # from ONNX Runtime 1.21 on
        # CUDA's libraries may have come by pip, where the loader does not look either.
        importlib.import_module("onnxruntime").preload_dlls()
    gpu = {"device_id": str(require_gpu(how.device, f"backend {how.backend}").index)}
    providers = [(CUDA_PROVIDER, gpu), (CPU_PROVIDER, {})]
    if tensorrt is None:
        return providers
    if not how.engine.build:
        raise BackendError(
            f"backend {how.backend} builds its engine when the model is loaded and cannot be told "
            "not to; allow it (build_engines), or choose backend tensorrt or tensorrt_rtx"
        )
    shapes = network_shapes(bundle, how.engine)
    half, folder = how.engine.precision == "fp16", str(_cache_folder(bundle, how))
    options = tensorrt.options(shapes, input_of(), folder, half=half)
    return [(tensorrt.provider, {**gpu, **options}), *providers]


def _cache_folder(bundle: Bundle, how: DenseOptions) -> Path:
    """Where this ONNX Runtime keeps engines of this model in this precision; made if need be."""
    import onnxruntime

    name = f"{bundle.spec.dense.file.sha256}-{how.engine.precision}-{onnxruntime.__version__}"
    folder = EngineCache(how.engine.cache).folder / "onnxruntime" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise BackendError(
            f"expected a folder that can be written to for engines, {folder}: {err.strerror}; "
            "choose another one (engine_cache)"
        ) from err
    return folder
