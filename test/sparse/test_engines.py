# SPDX-License-Identifier: Apache-2.0
"""Every engine by its name against the training network, which `test_unet` holds to the oracle."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import random_statistics
from oracle import example_masks, grid_of, sites_of
from torch import Tensor

from sparserefine_ros.dense import openvino as openvino_backend
from sparserefine_ros.errors import BackendError
from sparserefine_ros.kernels.library import Kernels, compiled_kernels
from sparserefine_ros.sparse import engines
from sparserefine_ros.sparse.engines import ENGINES, choose_engine, open_engine
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.sparse.unet import SparseUNet

MASKS = example_masks()
# Products of bfloat16 carry eight bits; the others sum float32 in another order.
TOLERANCE = {
    "compiled-bfloat16": 5e-2,
    "dense-bfloat16": 1e-1,
    "dense-openvino-bfloat16": 1e-1,
}
NO_TORCHSPARSE = "TorchSparse is not installed; docs/gpu.md says how to build it"
NO_SPCONV = "SpConv is not installed: pip install spconv"


def make_unet() -> SparseUNet:
    torch.manual_seed(31)
    unet = SparseUNet(5, 3, widths=(4, 6, 5), blocks=2)
    random_statistics(unet)
    return unet.eval()


# Triton needs a GPU, or its interpreter, for which `test/triton_kernels` prepares; float16 a GPU.
ON_CPU = [
    name for name in ENGINES if not name.startswith("triton") and not name.endswith("-float16")
]


@pytest.fixture(params=ON_CPU)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "spconv":
        pytest.importorskip("spconv", reason=NO_SPCONV)
    if request.param == "torchsparse":
        request.getfixturevalue("torchsparse")
    if request.param.startswith("compiled") and compiled_kernels() is None:
        pytest.skip("no compiled kernels: the package was installed without a C++ compiler")
    if request.param.startswith("dense-openvino"):
        openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
        known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if request.param.endswith("bfloat16") and "BF16" not in known:
            pytest.skip("the processor does not compute in bfloat16")
    return str(request.param)


@pytest.mark.parametrize("mask", MASKS)
def test_same_weights_same_results(name: str, mask: str) -> None:
    active, unet = MASKS[mask], make_unet()
    plan = build_plan(sites_of(active), grid_of(active), unet.depth)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(int(active.sum()), 5, generator=generator)
    logits = open_engine(name, unet, threads=1)(features, plan)
    assert_close(logits, unet(features, plan).detach(), name)


def assert_close(logits: Tensor, expected: Tensor, name: str) -> None:
    tolerance = TOLERANCE.get(name, 1e-4)
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)


def test_sizes_and_masks_may_change_from_frame_to_frame(name: str) -> None:
    unet = make_unet()
    engine = open_engine(name, unet, threads=1)
    for mask in ("odd", "one-first", "odd", "full", "empty", "sparse"):
        active = MASKS[mask]
        plan = build_plan(sites_of(active), grid_of(active), unet.depth)
        features = torch.randn(int(active.sum()), 5)
        expected = unet(features, plan).detach()
        assert_close(engine(features, plan), expected, name)


@pytest.mark.parametrize(
    "named",
    [
        "compiled", "compiled-bfloat16", "pytorch", "torchsparse",
        "dense", "dense-onnxruntime", "dense-openvino",
    ],
)  # fmt: skip
def test_data_bounds(named: str, request: pytest.FixtureRequest) -> None:
    if named == "dense-openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if named == "torchsparse":
        request.getfixturevalue(named)
    if named.startswith("compiled"):
        request.getfixturevalue("kernels")
    active, unet = MASKS["inner-block"], make_unet()
    plan = build_plan(sites_of(active), grid_of(active), unet.depth, bounds="data")
    features = torch.randn(int(active.sum()), 5)
    logits = open_engine(named, unet, threads=1)(features, plan)
    assert_close(logits, unet(features, plan).detach(), named)


def test_two_of_onnx_runtime_may_begin_at_once() -> None:
    masks = [MASKS["odd"], MASKS["full"]]
    unet, meeting = make_unet(), threading.Barrier(2, timeout=10.0)

    def run(active: Tensor) -> Tensor:
        engine = open_engine("dense-onnxruntime", unet, threads=1)
        plan = build_plan(sites_of(active), grid_of(active), unet.depth)
        meeting.wait()
        return engine(torch.ones(int(active.sum()), 5), plan)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, masks))
    for active, logits in zip(masks, found, strict=True):
        plan = build_plan(sites_of(active), grid_of(active), unet.depth)
        expected = unet(torch.ones(int(active.sum()), 5), plan).detach()
        assert_close(logits, expected, "dense-onnxruntime")


class TestOpenVino:
    @staticmethod
    def pretend(monkeypatch: pytest.MonkeyPatch, **core: Any) -> None:
        monkeypatch.setitem(sys.modules, "openvino", types.ModuleType("openvino"))
        monkeypatch.setattr(openvino_backend, "_core", lambda: types.SimpleNamespace(**core))

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(BackendError, match="pip install openvino"):
            open_engine("dense-openvino", make_unet(), threads=1)

    def test_a_processor_without_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pretend(monkeypatch, get_property=lambda device, name: ["FP32", "INT8"])
        with pytest.raises(BackendError, match="OpenVINO finds FP32, INT8; choose float32"):
            open_engine("dense-openvino-bfloat16", make_unet(), threads=1)

    def test_a_graph_that_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise RuntimeError("unknown operator")

        self.pretend(
            monkeypatch,
            get_property=lambda device, name: ["FP32"],
            read_model=str,
            compile_model=refuse,
        )
        active, unet = MASKS["odd"], make_unet()
        plan = build_plan(sites_of(active), grid_of(active), unet.depth)
        engine = open_engine("dense-openvino", unet, threads=1)
        with pytest.raises(BackendError, match=r"OpenVINO refuses .*grid.onnx: unknown operator"):
            engine(torch.ones(int(active.sum()), 5), plan)

    def test_a_signal_after_engines_came_and_went(self) -> None:
        """In whatever order; the process goes on."""
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
        code = """
import signal, torch
from sparserefine_ros.sparse.engines import open_engine
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.sparse.unet import SparseUNet
unet = SparseUNet(2, 2, widths=(4,)).eval()
for side in (3, 4, 5):
    engine = open_engine("dense-openvino", unet, threads=1)
    for larger in (0, 1):
        grid = (1, side + larger, side)
        plan = build_plan(torch.arange(grid[1] * grid[2]), grid, 1)
        engine(torch.ones(grid[1] * grid[2], 2), plan)
del engine
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append("interrupted"))
signal.raise_signal(signal.SIGINT)
print(*heard)
"""
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", code],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


class TestSpConv:
    def test_refuses_data_bounds(self) -> None:
        pytest.importorskip("spconv", reason=NO_SPCONV)
        active, unet = MASKS["inner-block"], make_unet()
        plan = build_plan(sites_of(active), grid_of(active), unet.depth, bounds="data")
        with pytest.raises(BackendError, match="expected a plan with image bounds for SpConv"):
            open_engine("spconv", unet, threads=1)(torch.randn(int(active.sum()), 5), plan)

    @pytest.mark.parametrize("meanwhile", [3, 1])
    def test_gives_the_threads_back(self, meanwhile: int) -> None:
        """As many as when it was made, also where another takes threads as it begins to run."""
        pytest.importorskip("spconv", reason=NO_SPCONV)
        active, unet = MASKS["odd"], make_unet()
        plan = build_plan(sites_of(active), grid_of(active), unet.depth)
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            engine = open_engine("spconv", unet, threads=2)
            torch.set_num_threads(meanwhile)
            engine(torch.randn(int(active.sum()), 5), plan)
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = builtins.__import__

        def absent(module: str, *rest: Any) -> Any:
            if module.startswith("spconv"):
                raise ImportError(f"No module named {module!r}")
            return plain(module, *rest)

        monkeypatch.setattr(builtins, "__import__", absent)
        with pytest.raises(BackendError, match="pip install spconv"):
            open_engine("spconv", make_unet(), threads=1)


@pytest.fixture
def torchsparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchSparse on the CPU: when it is imported it asks for a GPU, which it then does without."""
    if importlib.util.find_spec("torchsparse") is None:
        pytest.skip(NO_TORCHSPARSE)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    importlib.import_module("torchsparse")


class TestTorchSparse:
    @pytest.mark.usefixtures("torchsparse")
    def test_as_many_outputs_as_inputs(self) -> None:
        """It takes the middle tap for the identity then; here it links another site, or none."""
        unet, found = make_unet(), 0
        engine = open_engine("torchsparse", unet, threads=1)
        for place in range(49):
            active = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
            active.view(-1)[place] = True
            plan = build_plan(sites_of(active), grid_of(active), unet.depth)
            down = plan.levels[0].down
            assert down is not None
            found += down.inputs == down.outputs
            features = torch.randn(1, 5)
            expected = unet(features, plan).detach()
            assert_close(engine(features, plan), expected, "torchsparse")
        assert found > 0

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("torchsparse", "torchsparse.backends"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BackendError, match="see docs/gpu"):
            open_engine("torchsparse", make_unet(), threads=1)

    def test_float16_needs_a_gpu(self) -> None:
        with pytest.raises(BackendError, match="expected a UNet on a GPU"):
            open_engine("torchsparse-float16", make_unet(), threads=1)


class TestByName:
    def test_unknown(self) -> None:
        with pytest.raises(BackendError, match="expected a sparse engine of auto, compiled, comp"):
            open_engine("minkowski", make_unet(), threads=1)

    def test_no_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "compiled_kernels", lambda: None)
        with pytest.raises(BackendError, match=r"install a C\+\+ compiler"):
            open_engine("compiled", make_unet(), threads=1)
        assert type(open_engine("auto", make_unet(), threads=1)).__name__ == "PyTorchUNet"


class TestAuto:
    @pytest.mark.parametrize(
        ("native", "chosen"), [(True, "compiled-bfloat16"), (False, "compiled")]
    )
    def test_uses_bfloat16_only_where_the_processor_has_it(
        self, native: bool, chosen: str, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kernels, "has_bfloat16", native)
        assert choose_engine("auto") == chosen

    @pytest.mark.parametrize(
        ("capability", "chosen"),
        [((7, 5), "triton"), ((8, 0), "triton-float16"), ((9, 0), "triton-float16")],
    )
    def test_halves_only_where_tensor_cores_take_them(
        self, capability: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engines, "has_triton", lambda: True)
        monkeypatch.setattr(engines, "find_gpu", torch.device)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        assert choose_engine("auto", "cuda:1") == chosen

    def test_a_gpu_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What needs it tells so."""
        monkeypatch.setattr(engines, "has_triton", lambda: True)
        assert choose_engine("auto", "cuda:99") == "triton-float16"
        with pytest.raises(BackendError, match="expected the GPU as cuda or cuda:N, got 'cuda:x'"):
            choose_engine("auto", "cuda:x")

    def test_without_compiled_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "compiled_kernels", lambda: None)
        assert choose_engine("auto") == "pytorch"
