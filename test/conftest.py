# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: a tiny but complete bundle, and pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

import sparserefine_ros
from sparserefine_ros.bundle import BUNDLE_FILE, Bundle, create_bundle, seal_bundle
from sparserefine_ros.bundle_spec import (
    BundleSpec,
    ClassSpec,
    DenseInput,
    DenseOutputSpec,
    DenseSpec,
    EntropySelectorSpec,
    FileSpec,
    UNetRefinerSpec,
)
from sparserefine_ros.kernels.library import (
    PYTORCH,
    Kernels,
    compiled_kernels,
    kernels_from,
    runnable_kernels,
)
from sparserefine_ros.refiner import Refiner
from sparserefine_ros.weights import save_weights
from sparserefine_ros.zoo.export import export_onnx

# Tiny tensors gain nothing from threads, whose barriers take long on a busy machine.
torch.set_num_threads(1)

NO_DIGEST = "0" * 64
CLASSES = (
    ClassSpec(name="road", colour=(128, 64, 128)),
    ClassSpec(name="car", colour=(64, 0, 128)),
    ClassSpec(name="sky", colour=(128, 128, 128)),
)


def random_statistics(module: nn.Module) -> None:
    """Give every batch norm statistics and affine values that folding cannot ignore."""
    generator = torch.Generator().manual_seed(7)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 2.0),
                (part.weight, 0.5, 1.5),
                (part.bias, -0.5, 0.5),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)


def make_tiny_bundle(
    folder: Path, *, sharpness: float = 1.0, classes: tuple[ClassSpec, ...] = CLASSES
) -> Path:
    """A small bundle: one convolution at half resolution, output stride 2, small refiner.

    With `sharpness` 1 the dense model is unsure almost everywhere, with 4 of about a
    sixth of a `smooth_picture`.
    """
    torch.manual_seed(3)
    sources = folder.parent / f"{folder.name}-sources"
    sources.mkdir(parents=True)
    head = nn.Conv2d(8, len(classes), 1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), head)
    head.weight.data *= sharpness
    export_onnx(network, sources / "dense.onnx")
    spec = BundleSpec(
        name="tiny",
        licence="none",
        classes=classes,
        dense=DenseSpec(
            file=FileSpec(path="dense.onnx", sha256=NO_DIGEST),
            input=DenseInput(scale=0.5, multiple_of=4),
            output=DenseOutputSpec(stride=2),
        ),
        selector=EntropySelectorSpec(threshold_nats=1.0),
        refiner=UNetRefinerSpec(
            file=FileSpec(path="refiner.safetensors", sha256=NO_DIGEST),
            widths=(8, 12),
            blocks=1,
            inputs=("rgb", "logits"),
        ),
    )
    assert spec.refiner is not None
    refiner = Refiner(spec.refiner, spec.refiner_channels(), len(classes))
    random_statistics(refiner)
    save_weights(refiner, sources / "refiner.safetensors")
    names = ("dense.onnx", "refiner.safetensors")
    create_bundle(folder, spec, {name: sources / name for name in names})
    return folder


def with_sections(folder: Path, *, features: object = None, **sections: object) -> Bundle:
    """Change sections of a bundle's description, `features` of its dense section, and seal it."""
    path = folder / BUNDLE_FILE
    fields = yaml.safe_load(path.read_text(encoding="utf-8")) | sections
    if features is not None:
        fields["dense"]["features"] = features
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return seal_bundle(folder)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a valid bundle with 3 classes and a refiner; do not change it."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def write_pointwise_onnx(
    path: Path,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    input_size: Sequence[int | str] = ("h", "w"),
    layout: str = "NCHW",
    output_layout: str = "NCHW",
    stride: int = 1,
    softmax: bool = False,
    float_type: int = TensorProto.FLOAT,
    batch: int | str = 1,
) -> None:
    """A third party's model: logits = weight [C, 3] @ pixel + bias [C], averaged over strides.

    Input `pixels`, output `scores`; `softmax` makes them probabilities.
    """
    dtype = helper.tensor_dtype_to_np_dtype(float_type)
    kernel = np.asarray(weight, dtype)[:, :, None, None]
    nodes = [helper.make_node("Conv", ["nchw", "kernel", "bias"], ["convolved"])]
    if layout == "NHWC":
        nodes.insert(0, helper.make_node("Transpose", ["pixels"], ["nchw"], perm=[0, 3, 1, 2]))
    else:
        nodes[0].input[0] = "pixels"
    pooling = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
    nodes.append(helper.make_node("AveragePool", ["convolved"], ["pooled"], **pooling))
    kind = ("Softmax", {"axis": 1}) if softmax else ("Identity", {})
    nodes.append(helper.make_node(kind[0], ["pooled"], ["scored"], **kind[1]))
    perm = [0, 2, 3, 1] if output_layout == "NHWC" else [0, 1, 2, 3]
    nodes.append(helper.make_node("Transpose", ["scored"], ["scores"], perm=perm))
    taken = [batch, 3, *input_size] if layout == "NCHW" else [batch, *input_size, 3]
    given = [batch, "oh", "ow"]
    given.insert(1 if output_layout == "NCHW" else 3, len(weight))
    graph = helper.make_graph(
        nodes,
        "third_party",
        [helper.make_tensor_value_info("pixels", float_type, taken)],
        [helper.make_tensor_value_info("scores", float_type, given)],
        [
            onnx.numpy_helper.from_array(kernel, "kernel"),
            onnx.numpy_helper.from_array(np.asarray(bias, dtype), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def smooth_picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture with structure: random colours on a coarse grid, enlarged, plus noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    picture = coarse.repeat(8, 0).repeat(8, 1)[:height, :width] + rng.normal(
        0, 8, (height, width, 3)
    )
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.fixture
def package_environment() -> dict[str, str]:
    """Environment of a process that imports the package under test and the modules beside this."""
    paths = (Path(sparserefine_ros.__file__).parents[1], Path(__file__).parent)
    path = os.pathsep.join(map(str, paths))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """uint8 [75, 101, 3] RGB; sides that divide by nothing useful."""
    return smooth_picture(75, 101)


@pytest.fixture
def kernels() -> Kernels:
    found = compiled_kernels()
    if found is None:
        pytest.skip("no compiled kernels: the package was installed without a C++ compiler")
    return found


_LIBRARIES = {kernels.name: kernels for kernels in runnable_kernels()}


@pytest.fixture(params=_LIBRARIES or ["none"])
def each_kernels(request: pytest.FixtureRequest) -> Kernels:
    """The compiled kernels for each instruction set that this processor has."""
    if not _LIBRARIES:
        pytest.skip("no compiled kernels: the package was installed without a C++ compiler")
    return _LIBRARIES[request.param]


@pytest.fixture(params=["compiled", "pytorch"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test that asks for it runs on the compiled kernels and on PyTorch."""
    if request.param == "compiled":
        request.getfixturevalue("kernels")
        yield "compiled"
    else:
        with kernels_from(PYTORCH):
            yield "pytorch"


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that a row nobody writes cannot pass for zero by luck."""
    plain_empty, plain_new_empty = torch.empty, Tensor.new_empty

    def poisoned(fresh: Tensor) -> Tensor:
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(plain_empty(*a, **k)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: poisoned(plain_new_empty(*a, **k)))
