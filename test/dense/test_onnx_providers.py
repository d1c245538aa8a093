# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime is asked for; its GPU providers themselves need a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense import onnx_providers
from sparserefine_ros.dense import onnxruntime as module_under_test
from sparserefine_ros.dense.onnx_providers import choose_providers
from sparserefine_ros.dense.options import DenseOptions, EngineOptions
from sparserefine_ros.dense.segmenter import open_segmenter
from sparserefine_ros.errors import BackendError, BundleError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT, RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
SIZES = ((48, 64), (96, 128), (192, 256))


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU for whoever asks whether there is one."""

    def found(device: str, purpose: str) -> torch.device:
        return torch.device(device) if ":" in device else torch.device(device, 0)

    monkeypatch.setattr(onnx_providers, "require_gpu", found)


def choose(bundle: Bundle, backend: str, device: str, **engine: Any) -> list[Any]:
    how = DenseOptions(backend, device, 1, EngineOptions(**engine))
    return choose_providers(bundle, how, [TENSORRT, RTX, CUDA, CPU], lambda: "picture")


def test_the_cpu(bundle: Bundle) -> None:
    assert choose(bundle, "onnxruntime", "cpu") == [(CPU, {})]


@pytest.mark.usefixtures("gpu")
class TestGpu:
    def test_cuda(self, bundle: Bundle) -> None:
        expected = [(CUDA, {"device_id": "2"}), (CPU, {})]
        assert choose(bundle, "onnxruntime", "cuda:2") == expected

    @pytest.mark.parametrize(
        ("backend", "provider", "prefix"),
        [("onnxruntime_tensorrt", TENSORRT, "trt"), ("onnxruntime_tensorrt_rtx", RTX, "nv")],
    )
    def test_tensorrt(
        self, bundle: Bundle, tmp_path: Path, backend: str, provider: str, prefix: str
    ) -> None:
        """The tiny bundle's model sees half of the picture; its profile spans the sizes."""
        (name, options), *others = choose(
            bundle, backend, "cuda:1", cache=tmp_path, picture_sizes=SIZES, precision="fp16"
        )
        assert (name, options["device_id"]) == (provider, "1")
        assert others == [(CUDA, {"device_id": "1"}), (CPU, {})]
        assert options[f"{prefix}_profile_min_shapes"] == "picture:1x3x24x32"
        assert options[f"{prefix}_profile_opt_shapes"] == "picture:1x3x48x64"
        assert options[f"{prefix}_profile_max_shapes"] == "picture:1x3x96x128"
        digest = bundle.spec.dense.file.sha256
        folder = tmp_path / "onnxruntime" / f"{digest}-fp16-{ort.__version__}"
        assert folder.is_dir()
        assert str(folder) in options.values()
        assert all(isinstance(value, str) for value in options.values())

    def test_one_size_is_smallest_and_largest(self, bundle: Bundle, tmp_path: Path) -> None:
        (_, options), *_ = choose(
            bundle, "onnxruntime_tensorrt", "cuda", cache=tmp_path, picture_sizes=SIZES[:1]
        )
        shapes = {value for key, value in options.items() if key.endswith("_shapes")}
        assert shapes == {"picture:1x3x24x32"}
        assert options["trt_engine_cache_enable"] == "1"

    def test_the_size_of_the_pictures_is_needed(self, bundle: Bundle, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match="expected the size of the camera's pictures"):
            choose(bundle, "onnxruntime_tensorrt", "cuda", cache=tmp_path)

    def test_it_cannot_be_told_not_to_build(self, bundle: Bundle, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match="builds its engine when the model is loaded"):
            choose(
                bundle, "onnxruntime_tensorrt", "cuda",
                cache=tmp_path, picture_sizes=SIZES, build=False,
            )  # fmt: skip

    def test_a_cache_that_cannot_be_written(self, bundle: Bundle) -> None:
        with pytest.raises(BackendError, match="expected a folder that can be written to"):
            choose(
                bundle, "onnxruntime_tensorrt", "cuda",
                cache=Path("/dev/null/cache"), picture_sizes=SIZES,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "provider", "step"),
    [
        ("onnxruntime", CUDA, "pip install onnxruntime-gpu"),
        ("onnxruntime_tensorrt", TENSORRT, r"pip install onnxruntime-gpu 'tensorrt>=10'"),
        ("onnxruntime_tensorrt_rtx", RTX, "build ONNX Runtime with --use_nv_tensorrt_rtx"),
    ],
)
def test_a_missing_provider_names_the_install_step(
    bundle: Bundle, backend: str, provider: str, step: str
) -> None:
    how = DenseOptions(backend, "cuda", 1)
    with pytest.raises(BackendError, match=f"expected an ONNX Runtime with {provider}.*{step}"):
        choose_providers(bundle, how, [CPU], lambda: "picture")


@pytest.mark.usefixtures("gpu")
class TestSession:
    """A session that was asked for TensorRT, on an ONNX Runtime that only pretends to have it."""

    @pytest.fixture(autouse=True)
    def pretend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CPU])

    def open(self, bundle: Bundle, cache: Path) -> Any:
        engine = EngineOptions(cache=cache, picture_sizes=SIZES)
        return open_segmenter(
            bundle, backend="onnxruntime_tensorrt", device="cuda", threads=1, engine=engine
        )

    def test_a_fall_back_is_an_error(self, bundle: Bundle, tmp_path: Path) -> None:
        """ONNX Runtime goes on with other providers where one does not start."""
        with pytest.raises(BackendError, match=f"could not start its .*{TENSORRT}, see its log"):
            self.open(bundle, tmp_path)

    def test_the_model_is_checked_before_an_engine_is_built(
        self, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[list[str]] = []
        plain = module_under_test._session

        def noted(model: Any, providers: Any, threads: int) -> Any:
            asked.append([name for name, _ in providers])
            return plain(model, providers, threads)

        monkeypatch.setattr(module_under_test, "_session", noted)
        output = bundle.spec.dense.output.model_copy(update={"name": "nothing"})
        dense = bundle.spec.dense.model_copy(update={"output": output})
        spec = bundle.spec.model_copy(update={"dense": dense})
        with pytest.raises(BundleError, match=r"expected dense\.output\.name"):
            self.open(Bundle(bundle.folder, spec, bundle.digest), tmp_path)
        assert asked == [[CPU]]
