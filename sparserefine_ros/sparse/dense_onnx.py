# SPDX-License-Identifier: Apache-2.0
"""The dense twin of the sparse UNet in ONNX Runtime or OpenVINO, mostly faster than PyTorch."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparserefine_ros.dense.openvino import compile_for_cpu
from sparserefine_ros.errors import BackendError
from sparserefine_ros.sparse.dense import GridUNet, mask_of, places_of, rows_of_grid
from sparserefine_ros.sparse.plan import Level, SparsePlan
from sparserefine_ros.sparse.unet import SparseUNet

Grids = tuple[tuple[int, int, int], ...]

# PyTorch's exporter keeps its state for the whole process, and so do the filters of warnings.
_EXPORTING: Final = threading.Lock()


class Session(Protocol):
    """A graph with one output, ready to run. Where no node reads an input, it is left out.

    Attributes:
        inputs: their names.
    """

    inputs: list[str]

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The output; the next run may overwrite it."""


class DenseOnnxUNet:
    """`GridUNet` in an engine for ONNX files behind the interface of the sparse engines.

    The graph is made anew for each size of picture, which takes seconds.

    Args:
        unet: trained weights, on the CPU.
        open_session: opens an ONNX file, which goes away afterwards.
    """

    def __init__(self, unet: SparseUNet, open_session: Callable[[Path], Session]) -> None:
        self._grid, self._open_session = GridUNet(unet).eval(), open_session
        self._grids: Grids = ()
        self._session: Session | None = None
        self._picture = _Picture()

    @torch.inference_mode()
    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C]."""
        finest = plan.levels[0]
        inputs = {"features": self._picture.draw(features, finest)}
        inputs |= {f"mask {i}": mask_of(level) for i, level in enumerate(plan.levels)}
        grids = tuple(level.grid for level in plan.levels)
        if self._session is None or grids != self._grids:
            self._session, self._grids = self._open(inputs), grids
        # Where a picture is too small for a level, the graph has no use for its mask.
        logits = self._session.run({name: inputs[name].numpy() for name in self._session.inputs})
        return rows_of_grid(torch.from_numpy(logits), finest)

    def _open(self, inputs: dict[str, Tensor]) -> Session:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "grid.onnx"
            with _EXPORTING, warnings.catch_warnings():
                # Sizes become constants of the graph, which is wanted here.
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    self._grid,
                    tuple(inputs.values()),
                    str(path),
                    dynamo=False,
                    opset_version=17,
                    input_names=list(inputs),
                )
            return self._open_session(path)


class _Picture:
    """Features on the grid, in memory that is kept: to make it anew takes longer than a network."""

    def __init__(self) -> None:
        self._grid = torch.empty(0, 0, 0, 0)
        self._drawn: tuple[Tensor, Tensor] | None = None

    def draw(self, features: Tensor, level: Level) -> Tensor:
        """Rows [N, channels] -> [B, channels, H, W], zero elsewhere; valid until drawn again."""
        batch, height, width = level.grid
        shape = (batch, features.shape[1], height, width)
        if self._grid.shape != shape:
            self._grid, self._drawn = torch.zeros(shape), None
        places = self._grid.flatten(2)
        if self._drawn is not None:
            picture, place = self._drawn
            places[picture, :, place] = 0.0
        picture, place = self._drawn = places_of(level)
        places[picture, :, place] = features
        return self._grid


class OnnxRuntimeSession:
    """See `Session`.

    Args:
        path: ONNX file.
        threads: of the engine.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [value.name for value in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """See `Session`."""
        (output,) = self._session.run(None, dict(inputs))
        return output  # type: ignore[no-any-return]


class OpenVinoSession:
    """See `Session`.

    Args:
        path: ONNX file.
        threads: of the engine.
        half: whether it computes in bfloat16.

    Raises:
        BackendError: OpenVINO is not installed, refuses the graph, or lacks the precision.
    """

    def __init__(self, path: Path, threads: int, *, half: bool) -> None:
        compiled = compile_for_cpu(path, half=half, threads=threads, what="dense-openvino")
        self._request = compiled.create_infer_request()
        self.inputs = [port.any_name for port in compiled.inputs]

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """See `Session`.

        Raises:
            BackendError: OpenVINO fails.
        """
        try:
            self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        except Exception as err:  # the engine raises RuntimeError and subclasses of its own
            raise BackendError(f"OpenVINO fails on the sparse network: {err}") from err
        return self._request.get_output_tensor().data  # type: ignore[no-any-return]
