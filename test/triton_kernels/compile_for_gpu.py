# SPDX-License-Identifier: Apache-2.0
"""Compiles what the engine launches for a GPU that need not be there; run as a program.

The launches of the package are real, with tensors on the CPU; Triton's launcher is told to stop
after compilation. Prints, as JSON, one line per compiled kernel.

    python compile_for_gpu.py CAPABILITY PRECISION [every]

CAPABILITY: such as 90. `every` compiles every tile that tuning would try, instead of the first.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from sparserefine_ros.ensemble import GatedEnsembler
from sparserefine_ros.sparse.plan import Gather, build_plan
from sparserefine_ros.sparse.unet import SparseUNet
from sparserefine_ros.triton_kernels import convolution, fusion, gradient, runtime, topology, unet

CAPABILITY, PRECISION, EVERY = int(sys.argv[1]), sys.argv[2], "every" in sys.argv


class AbsentGPU:
    """The part of Triton's driver that compilation asks."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


def compile_only(self: Any, *args: Any, **options: Any) -> None:
    options["warmup"] = True
    kernel = plain_run(self, *args, **options)
    key = (self.fn.__name__, kernel.hash)
    if key not in seen:
        seen.add(key)
        text = kernel.asm["ptx"]
        line = {
            "kernel": self.fn.__name__,
            "shared": kernel.metadata.shared,
            "machine_code": len(kernel.asm["cubin"]),
            "tensor_cores": "mma.sync" in text or "wgmma" in text,
            "double": ".f64" in text,
        }
        print(json.dumps(line), flush=True)


def compile_choices(self: Any, *args: Any, **options: Any) -> None:
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    for choice in self.prune_configs(options)[: None if EVERY else 1]:
        self.fn.run(*args, **options, **choice.all_kwargs())
        self.best_config = choice


plain_run, seen = JITFunction.run, set()
JITFunction.run, Autotuner.run = compile_only, compile_choices
triton.runtime.driver.set_active(AbsentGPU())
for module in (runtime, unet, fusion):
    module.check_device = lambda *_: None

sizes = (32, 64, 128) if EVERY else (16, 32)
network = SparseUNet(6, 19, widths=sizes, blocks=1).eval()
grid = (1, 40, 48)
plan = build_plan(torch.arange(40 * 48), grid, network.depth)
unet.TritonUNet(network, precision=PRECISION)(torch.zeros(40 * 48, 6), plan)

dtype = unet._DTYPES[PRECISION]
kernel = convolution.Weights.of(torch.zeros(9, 32, 32), dtype)
x, table = torch.zeros(64, 32, dtype=dtype), torch.zeros(64, 9, dtype=torch.int32)
convolution.convolve(x, table, kernel, 64, raw=torch.zeros(64, 32), split=3)

rows = Gather(torch.arange(64), table, tuple(range(9)))
gradient.weight_gradient(x, x, rows)

fusion.measure_uncertainty(torch.zeros(19, 8, 16))
fusion.TritonGate(GatedEnsembler(19))(torch.zeros(64, 19), torch.zeros(64, 19))

mask = torch.zeros(1, 32, 48, dtype=torch.bool)
layout = topology._layout((1, 64, 96), 2, mask.device)
for bounds_from_data in (False, True):
    marks, _ = topology._mark(mask, layout, find_bounds=bounds_from_data)
# The running sum stays empty here: say that there are sites.
numbers = [0, 40, 50, 60, 70, 80, 100, 110, 115, 120, 125, 64, 96, 31, 47]
scan = torch.zeros(layout.sections[-1].end, dtype=torch.int32)
topology._Filler(layout, marks, scan, numbers).plan()
