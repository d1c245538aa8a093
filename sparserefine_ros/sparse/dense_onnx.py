# SPDX-License-Identifier: Apache-2.0
"""The dense twin of the sparse UNet in ONNX Runtime, the faster dense engine on most CPUs."""

from __future__ import annotations

import tempfile
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from sparserefine_ros.sparse.dense import GridUNet, features_on_grid, mask_of, rows_of_grid
from sparserefine_ros.sparse.plan import SparsePlan
from sparserefine_ros.sparse.unet import SparseUNet

if TYPE_CHECKING:
    import onnxruntime

Grids = tuple[tuple[int, int, int], ...]

# PyTorch's exporter keeps its state for the whole process, and so do the filters of warnings.
_EXPORTING: Final = threading.Lock()


class DenseOnnxUNet:
    """`GridUNet` in ONNX Runtime behind the interface of the sparse engines.

    The graph is made anew for each size of picture, which takes seconds.
    """

    def __init__(self, unet: SparseUNet, *, threads: int) -> None:
        self._grid, self._threads = GridUNet(unet).eval(), threads
        self._grids: Grids = ()
        self._session: onnxruntime.InferenceSession | None = None

    @torch.inference_mode()
    def __call__(self, features: Tensor, plan: SparsePlan) -> Tensor:
        """Features float32 [N, inputs] of the plan's finest sites -> logits float32 [N, C]."""
        finest = plan.levels[0]
        inputs = {"features": features_on_grid(features, finest).contiguous()}
        inputs |= {f"mask {i}": mask_of(level) for i, level in enumerate(plan.levels)}
        grids = tuple(level.grid for level in plan.levels)
        if self._session is None or grids != self._grids:
            self._session, self._grids = self._open(inputs), grids
        # Where a picture is too small for a level, the graph has no use for its mask.
        taken = [value.name for value in self._session.get_inputs()]
        (logits,) = self._session.run(None, {name: inputs[name].numpy() for name in taken})
        return rows_of_grid(torch.from_numpy(logits), finest)

    def _open(self, inputs: dict[str, Tensor]) -> onnxruntime.InferenceSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
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
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
