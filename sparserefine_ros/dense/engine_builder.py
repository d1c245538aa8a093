# SPDX-License-Identifier: Apache-2.0
"""From an ONNX model to a serialised TensorRT engine.

The network is strongly typed: number types are those of the ONNX file, so one way serves
TensorRT 10, 11 and TensorRT for RTX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from sparserefine_ros.dense.contract import GraphTensor
from sparserefine_ros.dense.options import Progress, Report
from sparserefine_ros.dense.tensorrt_library import PORTABLE, TURING, Library
from sparserefine_ros.errors import BackendError

Shape = tuple[int, int, int, int]

# Counted up when engines from the same inputs come out differently.
BUILDER_VERSION: Final = 1
FLAGS: Final = ("STRONGLY_TYPED",)

_MEMORY: Final = re.compile(r"out ?of ?memory|memory allocation", re.IGNORECASE)
_ELEMENTS: Final = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def build_engine(
    library: Library,
    model: bytes,
    *,
    shapes: Sequence[Shape],
    target: str,
    check: Callable[[list[GraphTensor], list[GraphTensor]], str],
    report: Report,
) -> bytes:
    """Parse and build.

    Args:
        library: the flavour.
        model: ONNX file.
        shapes: of the network input: the only one; or the smallest, the usual and the largest.
        target: what `build_target` returned.
        check: gets inputs and outputs of the network before the long work, raises what is wrong
            with them, and returns the name of the input that `shapes` are about.
        report: gets the progress; what it raises ends the build.

    Raises:
        BackendError: an operator is not supported, or the build fails, for instance for want of
            memory; the text names the operator or repeats TensorRT's own words.
    """
    trt = library.trt
    report(Progress(f"building a {library.flavour} engine"))
    with library.complaints() as complaints:
        builder = trt.Builder(library.log)
        flag = int(getattr(trt.NetworkDefinitionCreationFlag, FLAGS[0]))
        network = builder.create_network(1 << flag)
        _parse(library, network, model)
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        name = check(_describe(inputs), _describe(outputs))
        config = builder.create_builder_config()
        if -1 in tuple(next(t.shape for t in inputs if t.name == name)):
            profile = builder.create_optimization_profile()
            profile.set_shape(name, shapes[0], shapes[len(shapes) // 2], shapes[-1])
            config.add_optimization_profile(profile)
        if library.portable and target != PORTABLE:
            turing = f"SM{TURING[0]}{TURING[1]}"
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, turing), 0)
        monitor = _make_monitor(trt, library.flavour, report)
        config.progress_monitor = monitor
        engine = builder.build_serialized_network(network, config)
    if monitor.cancelled_by is not None:
        raise monitor.cancelled_by
    if engine is None:
        raise BackendError(
            f"{library.flavour} {library.version} cannot build the engine: "
            + first_cause(complaints)
        )
    return bytes(engine)


def _parse(library: Library, network: Any, model: bytes) -> None:
    parser = library.trt.OnnxParser(network, library.log)
    if parser.parse(model):
        if network.num_inputs == 0:  # bytes that happen to be a protobuf message
            raise BackendError("expected an ONNX model with an input, the file holds none")
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    raise BackendError(
        f"{library.flavour} {library.version} cannot take the dense model: "
        + "; ".join(_describe_error(error) for error in errors)
        + "; export it without this operator, or use backend onnxruntime"
    )


def _describe_error(error: Any) -> str:
    kind = str(error.code()).rpartition(".")[2]
    if error.node() < 0:
        return f"{kind}: {error.desc()}"
    operator = error.node_operator() if hasattr(error, "node_operator") else "operator"
    name = error.node_name() if hasattr(error, "node_name") else ""
    return f"{operator} at node {error.node()} ({name or 'unnamed'}), {kind}: {error.desc()}"


def _describe(tensors: Sequence[Any]) -> list[GraphTensor]:
    return [describe_tensor(tensor.name, tensor.shape, tensor.dtype) for tensor in tensors]


def describe_tensor(name: str, shape: Sequence[int], dtype: Any) -> GraphTensor:
    """A tensor of a network or an engine; free sides are "?"."""
    sides: list[Any] = ["?" if side < 0 else int(side) for side in shape]
    return GraphTensor(name, sides, _ELEMENTS.get(dtype.name, dtype.name.lower()))


def first_cause(complaints: Sequence[str]) -> str:
    """TensorRT's first words about a failure, and what to do where that is known."""
    if not complaints:
        return "it gives no reason; its log at level DEBUG may tell more"
    cause = complaints[0].strip()
    # What asked for too much memory comes first. A driver that lacks is told beside other causes.
    if any(map(_MEMORY.search, complaints)):
        advice = "; free GPU memory or choose smaller pictures"
    elif "driver version is insufficient" in cause.lower():
        advice = "; update the NVIDIA driver, it is older than this runtime needs, or absent"
    else:
        advice = ""
    return cause + advice


def _make_monitor(trt: Any, flavour: str, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases nest: a step of one is another phase with steps of its own.

        No exception gets through TensorRT: it is kept, and the build cancelled.
        """

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, tuple[int, int]] = {}
            self._share = 0.0
            self.cancelled_by: BaseException | None = None

        def _tell(self, share: float) -> bool:
            try:
                report(Progress(f"building a {flavour} engine", share))
            except BaseException as err:  # Ctrl-C among them
                self.cancelled_by = err
            return self.cancelled_by is None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = (0, max(steps, 1))

        def step_complete(self, phase: str, step: int) -> bool:
            self._steps[phase] = (step + 1, self._steps[phase][1])
            share = 0.0
            for done, steps in reversed(self._steps.values()):
                share = min(1.0, (done + share) / steps)
            # A step may hold more than one phase; do not go back at the second.
            self._share = max(self._share, share)
            return self._tell(self._share)

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)
            if not self._steps:
                self._tell(1.0)

    return Monitor()
