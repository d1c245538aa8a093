# SPDX-License-Identifier: Apache-2.0
"""From a network to a bundle that runs, with the ONNX model compared to the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import random_statistics, smooth_picture
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import mmseg_names
from zoo.small_models import HRNET, MASK2FORMER, SEGNEXT, SWIN

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.cli import main
from sparserefine_ros.errors import BackendError, ConfigurationError
from sparserefine_ros.image import Normalisation
from sparserefine_ros.pipeline import Pipeline
from sparserefine_ros.records import Map
from sparserefine_ros.resources import find_bundle
from sparserefine_ros.zoo import hrnet, mask2former, segnext
from sparserefine_ros.zoo.checkpoints.mmseg import load_mmseg
from sparserefine_ros.zoo.classes import read_classes
from sparserefine_ros.zoo.dense_bundle import ExportOptions, export_bundle
from sparserefine_ros.zoo.ladder import LadderNet
from sparserefine_ros.zoo.network import DenseNetwork
from sparserefine_ros.zoo.residual import ResidualEncoder
from sparserefine_ros.zoo.segformer import SIZES, build_segformer

CLASSES = read_classes("4")
GIVEN = {"licence": "none", "origin": "random"}


def make_network(name: str) -> DenseNetwork:
    torch.manual_seed(21)
    network: DenseNetwork
    if name == "hrnet":
        network = hrnet.HRNet(4, **HRNET)
    elif name == "segnext":
        network = segnext.SegNeXt(4, size=SEGNEXT)
    elif name == "ladder":
        encoder = ResidualEncoder(stem=4, widths=(6, 8), blocks=1)
        network = LadderNet(encoder, 4, ladder=8, features=6)
    else:
        pytest.importorskip("transformers")
        if name == "mask2former":
            network = mask2former.build_mask2former(4, SWIN, **MASK2FORMER)
        else:
            network = build_segformer(4, SIZES["b0"], head="normed")
    random_statistics(network)
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
    return network.eval()


def run_onnx(bundle: Bundle, image: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(bundle.path(bundle.spec.dense.file)))
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    given = image.numpy().astype(dtype[session.get_inputs()[0].type])
    return torch.from_numpy(session.run([bundle.spec.dense.output.name], {"image": given})[0])


@pytest.mark.parametrize("name", ["hrnet", "segnext", "segformer", "ladder", "mask2former"])
def test_pictures_of_a_batch(name: str, tmp_path: Path) -> None:
    options = ExportOptions(size=(64, 96))
    bundle = export_bundle(make_network(name), CLASSES, tmp_path / "mine", options, **GIVEN)
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    together = run_onnx(bundle, images)
    for image, found in zip(images, together, strict=True):
        expected = run_onnx(bundle, image[None])[0]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("name", ["hrnet", "segnext", "segformer", "ladder"])
def test_onnx_equals_the_network_at_free_sizes(name: str, tmp_path: Path) -> None:
    network = make_network(name)
    bundle = export_bundle(network, CLASSES, tmp_path / "mine", **GIVEN)
    assert bundle.name == "mine"
    assert (bundle.spec.dense.features is not None) == (name == "ladder")
    assert bundle.spec.dense.output.stride == network.output_stride
    for size in ((64, 96), (192, 64)):
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = network(image)
        found = run_onnx(bundle, image)
        assert expected.std() > 1e-2
        # Float32 through some thirty layers, with other summation orders.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_a_fixed_size_network(tmp_path: Path) -> None:
    network = make_network("mask2former")
    options = ExportOptions(size=(64, 96))
    bundle = export_bundle(network, CLASSES, tmp_path / "mine", options, **GIVEN)
    assert bundle.spec.dense.output.kind == "probabilities"
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(image)
    torch.testing.assert_close(run_onnx(bundle, image), expected, rtol=1e-3, atol=1e-3)
    prediction = Pipeline(bundle)(smooth_picture(75, 101), frozenset({Map.LABELS}))
    assert prediction.labels is not None
    assert prediction.labels.shape == (75, 101)


def test_the_pipeline_gives_the_networks_labels(tmp_path: Path) -> None:
    """Normalisation, stride and output kind in bundle.yaml are the network's."""
    network = make_network("hrnet")
    network.normalisation = Normalisation("RGB", (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
    picture = smooth_picture(64, 96)
    mean, std = torch.tensor([100.0, 110.0, 120.0]), torch.tensor([50.0, 60.0, 70.0])
    image = ((torch.from_numpy(picture).float() - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        # No class wins everywhere.
        bias = network.get_submodule("decode_head.conv_seg").bias
        bias -= network(image).mean((0, 2, 3))
    bundle = export_bundle(network, CLASSES, tmp_path / "m", ExportOptions(scale=1.0), **GIVEN)
    labels = Pipeline(bundle)(picture, frozenset({Map.LABELS})).labels
    with torch.no_grad():
        logits = F.interpolate(network(image), (64, 96), mode="bilinear", align_corners=False)
    assert labels is not None
    assert len(np.unique(labels)) > 2
    # OpenCV interpolates with eleven bits: pixels between two classes may flip.
    assert (labels == logits[0].argmax(0).numpy()).mean() > 0.99


@pytest.mark.parametrize("name", ["hrnet", "segnext", "segformer"])
def test_half_precision(name: str, tmp_path: Path) -> None:
    network = make_network(name)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(image)
    options = ExportOptions(precision="fp16", size=(64, 96))
    bundle = export_bundle(network, CLASSES, tmp_path / "mine", options, **GIVEN)
    found = run_onnx(bundle, image)
    assert found.dtype == torch.float16
    assert (found.float() - expected).abs().max() < 0.03 * expected.abs().max()
    session = onnxruntime.InferenceSession(str(bundle.path(bundle.spec.dense.file)))
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 96]
    Pipeline(bundle)(smooth_picture(75, 101))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("mask2former", ExportOptions(), "one input size; give it: --size HEIGHT WIDTH"),
        ("mask2former", ExportOptions(size=(64, 96), precision="fp16"), "fp32 only, got fp16"),
        ("hrnet", ExportOptions(size=(64, 90)), "multiples of 32 for HRNet, got 64 x 90"),
        ("hrnet", ExportOptions(size=(0, 64)), "multiples of 32 for HRNet, got 0 x 64"),
        ("hrnet", ExportOptions(scale=1.5), "a scale above 0, at most 1, got 1.5"),
    ],
    ids=["no-size", "half", "odd", "zero", "scale"],
)
def test_impossible_options(name: str, options: ExportOptions, match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=match):
        export_bundle(make_network(name), CLASSES, tmp_path / "mine", options, **GIVEN)
    assert list(tmp_path.iterdir()) == []


class Constant(DenseNetwork):
    """Its traced graph holds the size of the traced picture."""

    multiple_of = 4

    def forward(self, image: Tensor) -> Tensor:
        x = F.avg_pool2d(image, 4)
        shift = x.shape[-2] * float(x.detach().numpy().shape[-2])
        return torch.cat([x, x[:, :1] * shift], 1)


def test_a_graph_that_is_not_the_network_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"expected ONNX output within 0\.001 of the network's"):
        export_bundle(Constant(), CLASSES, tmp_path / "mine", **GIVEN)
    assert list(tmp_path.iterdir()) == []


class TestCommand:
    def test_a_segformer_of_transformers_runs_with_no_hand_editing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(5)
        labels = {0: "road", 1: "car", 2: "sky"}
        config = transformers.SegformerConfig(id2label=labels, label2id={})
        transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "theirs")
        bundle, out = tmp_path / "bundle", tmp_path / "out"
        assert main(["export", str(tmp_path / "theirs"), "--out", str(bundle)]) == 0
        assert "3 classes" in capsys.readouterr().out
        assert Bundle.open(bundle).class_names == ("road", "car", "sky")
        arguments = ["run", "street:0:160x96", "--limit", "1", "--bundle", str(bundle)]
        assert main([*arguments, "-o", str(out)]) == 0
        assert list(out.glob("*_labels.png"))

    def test_a_checkpoint_of_mmsegmentation(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        shapes = mmseg_names.segformer(SIZES["b0"].widths, SIZES["b0"].depths, 256, 19)
        state = mmseg_names.random_state(shapes)
        torch.save({"meta": {}, "state_dict": state}, tmp_path / "b0.pth")
        arguments = ["export", "segformer-b0", "--checkpoint", str(tmp_path / "b0.pth")]
        assert main([*arguments, "--classes", "cityscapes", "--out", str(tmp_path / "x")]) == 0
        bundle = Bundle.open(tmp_path / "x")
        assert bundle.class_names[13] == "car"
        assert bundle.spec.training["dense_weights"] == "segformer-b0, checkpoint b0.pth"
        image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = load_mmseg("segformer-b0", 19, tmp_path / "b0.pth")(image)
        torch.testing.assert_close(run_onnx(bundle, image), expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["hrnet-w99", "--classes", "4"], "expected a network of ladder-lite0"),
            (["hrnet-w99", "--checkpoint", "no.pth"], "got 'hrnet-w99' and --checkpoint no.pth"),
            (["hrnet-w48", "--checkpoint", "/tmp"], "a Hugging Face folder says itself"),
            (["segformer-b0"], "expected --classes for a network by name"),
            (["segformer-b0", "--classes", "4", "--checkpoint", "no.pth"], "found none at no.pth"),
            (["segformer-b0", "--classes", "4", "--size", "60", "96"], "multiples of 32"),
        ],
        ids=["name", "name and checkpoint", "folder", "classes", "checkpoint", "size"],
    )
    def test_mistakes_are_one_line(
        self, arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["export", *arguments, "--out", str(tmp_path / "x")]) == 1
        error = capsys.readouterr().err.strip()
        assert text in error
        assert "\n" not in error
        assert not (tmp_path / "x").exists()

    def test_another_number_of_classes_than_the_folder_has(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.SegformerConfig(num_labels=3)
        transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "theirs")
        arguments = ["export", str(tmp_path / "theirs"), "--out", str(tmp_path / "x")]
        assert main([*arguments, "--classes", "cityscapes"]) == 1
        assert "has 3 classes, --classes 19" in capsys.readouterr().err

    def test_what_lies_there_is_no_loss(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Twice under the network's own name, then over a bundle with a refiner."""
        out = tmp_path / "ladder-lite0"
        arguments = ["export", "ladder-lite0", "--classes", "3", "--out", str(out)]
        assert main(arguments) == 0
        (out / "LICENSE").write_text("mine")
        monkeypatch.chdir(tmp_path)
        assert main(arguments) == 0
        assert (out / "LICENSE").read_text() == "mine"
        assert Bundle.open(out).name == "ladder-lite0"
        refined = find_bundle("street_small")
        capsys.readouterr()
        assert main([*arguments[:-1], str(refined)]) == 1
        assert "the refiner of street_small would be lost" in capsys.readouterr().err

    def test_names(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["zoo", "list"]) == 0
        assert "segformer-b3" in capsys.readouterr().out.split()
