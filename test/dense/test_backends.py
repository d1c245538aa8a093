# SPDX-License-Identifier: Apache-2.0
"""Which engine "auto" takes and why; engines, GPUs and providers that are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_bundle, with_sections

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense import backends
from sparserefine_ros.dense.backends import BACKENDS, TENSORRT_PACKAGES, choose_backend
from sparserefine_ros.dense.devices import find_gpu, require_gpu
from sparserefine_ros.dense.options import EngineOptions
from sparserefine_ros.dense.segmenter import open_segmenter
from sparserefine_ros.dense.tensorrt_library import (
    PORTABLE,
    Library,
    build_target,
    load_library,
)
from sparserefine_ros.errors import BackendError

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def pretend_gpu(
    monkeypatch: pytest.MonkeyPatch,
    *,
    flavours: tuple[str, ...],
    capability: tuple[int, int] = (8, 9),
) -> None:
    """A GPU is found, and so are these flavours of TensorRT."""
    monkeypatch.setattr(backends, "require_gpu", lambda device, _: torch.device(device))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(
        backends, "installed_package", lambda name: name if name in flavours else None
    )


class TestAuto:
    def test_on_the_cpu(self, bundle: Bundle) -> None:
        choice = choose_backend(bundle, "auto", "cpu", EngineOptions())
        assert choice.backend == "onnxruntime"
        assert choice.annotate("engine") == "engine (auto: device is cpu)"

    def test_a_named_backend_needs_no_reason(self, bundle: Bundle) -> None:
        choice = choose_backend(bundle, "openvino", "cpu", EngineOptions())
        assert (choice.backend, choice.annotate("engine")) == ("openvino", "engine")

    @needs_no_gpu
    def test_without_a_gpu(self, bundle: Bundle) -> None:
        with pytest.raises(BackendError, match=r"expected an NVIDIA GPU \(cuda\) .*found none"):
            choose_backend(bundle, "auto", "cuda", EngineOptions())

    def test_on_a_gpu_without_tensorrt(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretend_gpu(monkeypatch, flavours=())
        choice = choose_backend(bundle, "auto", "cuda:0", EngineOptions())
        assert choice.backend == "onnxruntime"
        assert choice.reason == "device is cuda:0, TensorRT is not installed"

    def test_on_a_gpu_with_tensorrt(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_gpu(monkeypatch, flavours=("tensorrt_rtx",))
        free = choose_backend(bundle, "auto", "cuda", EngineOptions())
        assert free.backend == "onnxruntime"
        assert "tensorrt_rtx would need the size of the pictures" in free.reason
        known = EngineOptions(picture_sizes=((48, 64),))
        choice = choose_backend(bundle, "auto", "cuda", known)
        assert choice.backend == "tensorrt_rtx"
        assert "tensorrt_rtx is installed" in choice.reason

    @pytest.mark.parametrize(
        ("flavours", "expected"),
        [(("tensorrt_rtx",), "onnxruntime"), (("tensorrt", "tensorrt_rtx"), "tensorrt")],
    )
    def test_a_data_centre_gpu(
        self,
        bundle: Bundle,
        monkeypatch: pytest.MonkeyPatch,
        flavours: tuple[str, ...],
        expected: str,
    ) -> None:
        pretend_gpu(monkeypatch, flavours=flavours, capability=(9, 0))
        known = EngineOptions(picture_sizes=((48, 64),))
        assert choose_backend(bundle, "auto", "cuda", known).backend == expected

    def test_a_bundle_of_fixed_size_needs_no_picture_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretend_gpu(monkeypatch, flavours=("tensorrt", "tensorrt_rtx"))
        folder = make_tiny_bundle(tmp_path / "tiny")
        dense = Bundle.open(folder).spec.dense.model_dump(mode="json", exclude_none=True)
        dense["input"] = {"size": [24, 32]}
        fixed = with_sections(folder, dense=dense)
        assert choose_backend(fixed, "auto", "cuda", EngineOptions()).backend == "tensorrt"


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_backend_names_the_precisions_and_devices_it_takes(name: str, bundle: Bundle) -> None:
    device = BACKENDS[name].devices[0]
    with pytest.raises(BackendError, match=rf"backend {name} takes precision .*got 'int3'"):
        open_segmenter(bundle, backend=name, device=device, threads=1, engine=EngineOptions("int3"))
    with pytest.raises(BackendError, match=rf"backend {name} runs on device .*got 'abacus:0'"):
        open_segmenter(bundle, backend=name, device="abacus:0", threads=1)


@pytest.mark.parametrize(
    ("name", "device", "step"),
    [
        ("openvino", "cpu", "pip install openvino"),
        ("tensorrt", "cuda", "pip install 'tensorrt>=10'"),
        ("tensorrt_rtx", "cuda", "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs"),
    ],
)
def test_a_missing_engine_names_the_install_step(
    name: str, device: str, step: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in TENSORRT_PACKAGES.get(name, (name,)):
        monkeypatch.setitem(sys.modules, package, None)
    load_library.cache_clear()
    with pytest.raises(BackendError) as caught:
        open_segmenter(bundle, backend=name, device=device, threads=1)
    assert f"backend {name} is not installed; run: {step}" in str(caught.value)


def test_a_missing_provider_names_the_install_step(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        BackendError, match=r"CUDAExecutionProvider .* pip install onnxruntime-gpu$"
    ):
        open_segmenter(bundle, backend="onnxruntime", device="cuda", threads=1)
    pretend_gpu(monkeypatch, flavours=("tensorrt",))
    with pytest.raises(BackendError, match=r"auto: .*tensorrt would need the size of the pictures"):
        open_segmenter(bundle, backend="auto", device="cuda", threads=1)


@needs_no_gpu
def test_the_cuda_provider_without_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(BackendError, match=r"expected an NVIDIA GPU .* backend onnxruntime"):
        open_segmenter(bundle, backend="onnxruntime", device="cuda", threads=1)


class TestGpu:
    def test_a_pytorch_without_cuda_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "cuda", None)
        with pytest.raises(BackendError, match=r"\(cuda:1\) for work, found none; .*without CUDA"):
            require_gpu("cuda:1", "work")
        assert find_gpu("cuda") is None

    def test_a_driver_that_is_missing_or_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(BackendError, match=r"nvidia-smi.*new enough for CUDA 13.0"):
            require_gpu("cuda", "work")

    def test_a_number_too_high(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert require_gpu("cuda:1", "work") == torch.device("cuda", 1)
        with pytest.raises(BackendError, match=r"there are 2: choose cuda:0 .. cuda:1"):
            require_gpu("cuda:2", "work")


class TestTarget:
    rtx = Library("tensorrt_rtx", trt=None, log=None)
    full = Library("tensorrt", trt=None, log=None)

    def test_rtx_builds_for_all_newer_gpus_or_for_turing(self) -> None:
        assert build_target(self.rtx, None) == PORTABLE
        assert build_target(self.rtx, None, (8, 9)) == PORTABLE
        assert build_target(self.rtx, None, (7, 5)) == "compute capability 7.5"
        with pytest.raises(BackendError, match=r"made for, got .* 9\.0; use backend tensorrt"):
            build_target(self.rtx, None, (9, 0))
        with pytest.raises(BackendError, match=r"compute capability 7\.5 or later .* got 6\.1"):
            build_target(self.rtx, None, (6, 1))

    def test_rtx_looks_at_the_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        assert build_target(self.rtx, torch.device("cuda", 0)) == "compute capability 7.5"

    def test_tensorrt_builds_for_the_gpu_it_finds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Toy")
        target = build_target(self.full, torch.device("cuda", 0))
        assert target == "NVIDIA Toy, compute capability 9.0"
        with pytest.raises(BackendError, match="for the GPU of this machine only; build where"):
            build_target(self.full, None)
        with pytest.raises(BackendError, match="for the GPU of this machine only"):
            build_target(self.full, torch.device("cuda", 0), (7, 5))
