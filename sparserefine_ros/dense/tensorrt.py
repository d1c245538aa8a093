# SPDX-License-Identifier: Apache-2.0
"""Dense models as TensorRT engines: TensorRT 10 and 11, and TensorRT for RTX.

The network's input and outputs are PyTorch tensors on the GPU. The engine runs on PyTorch's current
stream, or on one of its own where that is the default stream. Logits and features stay there for
stages that run there. Else they go to the CPU as the network returns them, before they are enlarged
by the output stride.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.contract import Contract, GraphTensor
from sparserefine_ros.dense.devices import on_gpu, require_gpu
from sparserefine_ros.dense.engine_builder import describe_tensor, first_cause
from sparserefine_ros.dense.engine_cache import CachedEngine
from sparserefine_ros.dense.engines import obtain_engine
from sparserefine_ros.dense.options import DenseOptions, Report
from sparserefine_ros.dense.tensorrt_library import (
    Library,
    build_target,
    describe_validity,
    load_library,
)
from sparserefine_ros.errors import BackendError, ModelOutputError
from sparserefine_ros.records import DenseOutput

logger = logging.getLogger(__name__)

_TORCH_TYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    # Of outputs that the bundle does not use.
    "int32": torch.int32,
    "int64": torch.int64,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


class RefusedEngineError(BackendError):
    """A whole engine file that this runtime or driver does not load."""


def open_segmenter(bundle: Bundle, how: DenseOptions, report: Report) -> TensorRtSegmenter:
    """Load the engine of a bundle's dense model, building it where it is missing.

    Raises:
        BackendError: TensorRT is not installed, there is no GPU, or the engine cannot be built or
            loaded.
        BundleError: the model contradicts the bundle.
    """
    library = load_library(how.backend)
    device = require_gpu(how.device, f"backend {how.backend}")
    target = build_target(library, device)
    wanted: dict[str, Any] = {"options": how.engine, "target": target, "report": report}
    with on_gpu(device):
        engine = obtain_engine(bundle, library, **wanted)
        try:
            return TensorRtSegmenter(bundle, library, engine.cached, device, how.on_device)
        except RefusedEngineError as err:
            if engine.built or not how.engine.build:
                raise
            engine = obtain_engine(bundle, library, **wanted, refused=str(err))
            return TensorRtSegmenter(bundle, library, engine.cached, device, how.on_device)


def _refusal(what: str, said: str) -> BackendError:
    """The error for an engine that was not loaded."""
    # A new engine would meet the same driver and the same memory.
    hopeless = any(word in said.lower() for word in ("driver", "memory"))
    return (BackendError if hopeless else RefusedEngineError)(f"{what}: {said}")


class TensorRtSegmenter:
    """See `sparserefine_ros.dense.segmenter.Segmenter`; made while `device` is the current GPU."""

    def __init__(
        self,
        bundle: Bundle,
        library: Library,
        cached: CachedEngine,
        device: torch.device,
        on_device: bool,
    ) -> None:
        self._library, self._device, self._on_device = library, device, on_device
        with library.complaints() as complaints:
            # The runtime must outlive its engine, and the engine its context.
            self._runtime = library.trt.Runtime(library.log)
            self._engine = self._runtime.deserialize_cuda_engine(cached.data)
            if self._engine is None:
                said = describe_validity(library, cached.data) or first_cause(complaints)
                raise _refusal(
                    f"{library.flavour} {library.version} does not load the engine", said
                )
            self._context, strategy = _make_context(library.trt, self._engine)
            if self._context is None:
                raise BackendError(
                    f"{library.flavour} cannot run the engine: {first_cause(complaints)}"
                )
        inputs, outputs = _tensors(library.trt, self._engine)
        self._contract = Contract(bundle, inputs, outputs, cached.record.key.shapes[-1][0])
        self._outputs = outputs
        # TensorRT for RTX captures graphs itself; for TensorRT, PyTorch does.
        self._captures = not strategy and len(cached.record.key.shapes) == 1
        self._own_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: _Buffers | None = None
        key = cached.record.key
        captured = ", CUDA graph" if strategy or self._captures else ""
        self.description = (
            f"{library.flavour} {library.version} {key.precision} on "
            f"{torch.cuda.get_device_name(device)}{captured}"
        )

    def __call__(self, low_res_images: Sequence[NDArray[np.uint8]]) -> list[DenseOutput]:
        """Segment pictures of one size, uint8 [h, w, 3] RGB each, to logits float32 [C, h, w].

        Raises:
            ModelOutputError: the pictures do not fit the engine; the model failed or returned
                NaN, infinity or the wrong shape.
        """
        network_input = torch.from_numpy(self._contract.network_input(low_res_images))
        stream, current = self._stream(), torch.cuda.current_stream(self._device)
        with torch.cuda.stream(stream), self._library.complaints() as complaints:
            try:
                if self._on_device:
                    # The memory of earlier results may be given out again while they are read.
                    stream.wait_stream(current)
                buffers = self._fit(tuple(network_input.shape))
                buffers.input.copy_(network_input)
                if not buffers.run():
                    raise ModelOutputError(f"the dense model failed: {first_cause(complaints)}")
                raw = [buffers.outputs[name] for name in self._contract.output_names]
                if self._on_device:
                    # The next pictures overwrite the buffers.
                    kept = [part.clone() for part in raw]
                    found = self._contract.device_outputs(kept, low_res_images)
                else:
                    # The copy to the CPU waits for the stream.
                    arrays = [_as_float(part.cpu()).numpy() for part in raw]
                    found = self._contract.dense_outputs(arrays, low_res_images)
            except RuntimeError as err:  # PyTorch's CUDA errors, out of memory among them
                raise ModelOutputError(f"the dense model failed: {err}") from err
        current.wait_stream(stream)
        return found

    def _stream(self) -> torch.cuda.Stream:
        """PyTorch's current stream; on the default one TensorRT would wait, and not capture."""
        current = torch.cuda.current_stream(self._device)
        is_default = current == torch.cuda.default_stream(self._device)
        return self._own_stream if is_default else current

    def _fit(self, shape: tuple[int, ...]) -> _Buffers:
        """Buffers for network inputs of `shape`; kept until another one comes."""
        if self._buffers is not None and tuple(self._buffers.input.shape) == shape:
            return self._buffers
        # Whatever fails from here on, buffers of another shape must not be run again.
        self._buffers = None
        if not self._context.set_input_shape(self._contract.input.name, shape):
            lowest, _, highest = self._engine.get_tensor_profile_shape(self._contract.input.name, 0)
            raise ModelOutputError(
                f"expected a network input of {list(lowest)} to {list(highest)}, got "
                f"{list(shape)}; give picture_sizes and max_batch that hold it"
            )
        self._buffers = _Buffers(
            self._context, self._contract.input, self._outputs, self._device, self._captures
        )
        return self._buffers


class _Buffers:
    """Input and outputs of one shape on the GPU, and the run over them."""

    def __init__(
        self,
        context: Any,
        taken: GraphTensor,
        given: list[GraphTensor],
        device: torch.device,
        captures: bool,
    ) -> None:
        def allocate(tensor: GraphTensor) -> torch.Tensor:
            shape = tuple(context.get_tensor_shape(tensor.name))
            kind = _TORCH_TYPES.get(tensor.element)
            if kind is None or any(side < 0 for side in shape):
                raise ModelOutputError(
                    f"expected {tensor.name} of a known size and of {', '.join(_TORCH_TYPES)}, got "
                    f"{list(shape)} of {tensor.element}; export the model without it"
                )
            found = torch.empty(shape, dtype=kind, device=device)
            context.set_tensor_address(tensor.name, found.data_ptr())
            return found

        self._context, self._captures = context, captures
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False
        self.input = allocate(taken)
        self.outputs = {tensor.name: allocate(tensor) for tensor in given}

    def run(self) -> bool:
        """Run the network on the current stream; whether TensorRT took the work."""
        if self._graph is not None:
            self._graph.replay()
            return True
        if self._captures and self._warm:
            self._graph = self._capture()
            return self.run()
        # The first run allocates and must not be captured.
        self._warm = self._enqueue()
        return self._warm

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        self._captures = False
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads may allocate meanwhile. PyTorch's own stream for it is of one device.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                taken = self._enqueue()
        except RuntimeError as err:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own
            logger.warning("the engine runs without a CUDA graph: %s", err)
            return None
        return graph if taken else None

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream))


def _make_context(trt: Any, engine: Any) -> tuple[Any, bool]:
    """An execution context, and whether it captures CUDA graphs by itself."""
    if not hasattr(trt, "CudaGraphStrategy"):
        return engine.create_execution_context(), False
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config), True


def _tensors(trt: Any, engine: Any) -> tuple[list[GraphTensor], list[GraphTensor]]:
    """Inputs and outputs of an engine."""
    inputs: list[GraphTensor] = []
    outputs: list[GraphTensor] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        tensor = describe_tensor(name, engine.get_tensor_shape(name), engine.get_tensor_dtype(name))
        taken = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if taken else outputs).append(tensor)
    return inputs, outputs


def _as_float(values: torch.Tensor) -> torch.Tensor:
    """NumPy has no bfloat16."""
    return values.float() if values.dtype == torch.bfloat16 else values
