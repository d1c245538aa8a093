# SPDX-License-Identifier: Apache-2.0
"""Refiners of the SparseRefine release against a rebuilt nest of modules on whole grids.

The modules here are nested and numbered as in the release, so that their state dict has its keys;
they compute with the dense oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from conftest import random_statistics, smooth_picture
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import FileSpec
from sparserefine_ros.cli import main
from sparserefine_ros.errors import CheckpointError
from sparserefine_ros.pipeline import Pipeline
from sparserefine_ros.records import Map
from sparserefine_ros.refiner import load_refiner
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.zoo.checkpoints.released import load_released_refiner

FILE = FileSpec(path="refiner.safetensors")
CLASSES = 3
WIDTHS = (6, 8, 10)


class Conv(nn.Module):
    def __init__(self, kind: str, *shape: int) -> None:
        super().__init__()
        self.kind = kind
        self.kernel = nn.Parameter(torch.randn(*shape) * (2.0 / (shape[0] * shape[-2])) ** 0.5)


class Norm(nn.BatchNorm1d):
    def on(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias) * mask


class Table(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for number, branch in enumerate(branches):
            self.add_module(str(number), branch)


def residual(inputs: int, outputs: int) -> list[nn.Module]:
    shortcut = nn.Identity() if inputs == outputs else Conv("point", inputs, outputs)
    main_branch = nn.Sequential(
        Norm(inputs), nn.ReLU(), Conv("same", 9, inputs, outputs),
        Norm(outputs), nn.ReLU(), Conv("same", 9, outputs, outputs),
    )  # fmt: skip
    return [Table(shortcut, main_branch), nn.Module()]


def level(widths: Sequence[int], blocks: int) -> nn.Sequential:
    width = widths[0]
    parts = [part for _ in range(blocks) for part in residual(width, width)]
    if len(widths) > 1:
        inner = nn.Sequential(
            Norm(width), nn.ReLU(), Conv("down", 9, width, widths[1]), level(widths[1:], blocks),
            Norm(widths[1]), nn.ReLU(), Conv("up", 9, widths[1], width),
        )  # fmt: skip
        parts += [Table(nn.Identity(), inner), nn.Module()]
        for i in range(blocks):
            parts += residual(2 * width if i == 0 else width, width)
    return nn.Sequential(*parts)


class Release(nn.Module):
    """The release's module, with its names."""

    def __init__(self, widths: Sequence[int] = WIDTHS, blocks: int = 2, classes: int = CLASSES):
        super().__init__()
        torch.manual_seed(11)
        self.backbone = nn.Module()
        self.backbone.net = nn.Sequential(
            Conv("same", 9, 3, widths[0]), level(widths, blocks), Norm(widths[0]), nn.ReLU()
        )
        self.classifier = nn.Linear(widths[0], classes)
        self.ensembler = nn.Module()
        self.ensembler.attn = nn.Sequential(
            nn.Linear(2 * (classes + 1), 64), nn.ReLU(), nn.Linear(64, 2)
        )
        self.ensembler.fuser = nn.Sequential(
            nn.Linear(classes, 64), nn.ReLU(), nn.Linear(64, classes)
        )
        self.blocks = blocks
        random_statistics(self)

    def logits(self, x: Tensor, mask: Tensor) -> Tensor:
        """[1, 3, H, W] -> rows [N, C]."""
        stem, levels, norm, _ = self.backbone.net
        x = oracle.submanifold(x, mask, stem.kernel)
        x = F.relu(norm.on(self._level(levels, x, mask), mask))
        return self.classifier(oracle.grid_to_rows(x, mask))

    def _level(self, parts: nn.Sequential, x: Tensor, mask: Tensor) -> Tensor:
        tables = [part for part in parts if isinstance(part, Table)]
        for number, table in enumerate(tables):
            shortcut, branch = table.children()
            if len(branch) == 6:
                x = self._residual(shortcut, branch, x, mask)
                continue
            assert number == self.blocks
            norm, _, down, below, up_norm, _, up = branch
            coarse = oracle.strided_mask(mask, "data")
            deep = oracle.strided(F.relu(norm.on(x, mask)), mask, down.kernel, "data")
            deep = F.relu(up_norm.on(self._level(below, deep, coarse), coarse))
            x = torch.cat([x, oracle.transposed(deep, coarse, up.kernel, mask)], 1)
        return x

    @staticmethod
    def _residual(shortcut: nn.Module, branch: nn.Sequential, x: Tensor, mask: Tensor) -> Tensor:
        norm1, _, conv1, norm2, _, conv2 = branch
        y = oracle.submanifold(F.relu(norm1.on(x, mask)), mask, conv1.kernel)
        y = oracle.submanifold(F.relu(norm2.on(y, mask)), mask, conv2.kernel)
        if isinstance(shortcut, Conv):
            x = torch.einsum("bihw,io->bohw", x, shortcut.kernel)
        return x + y

    def fused(self, dense: Tensor, refined: Tensor) -> Tensor:
        """The paper's gate on rows [N, C]."""
        evidence = []
        for logits in (dense, refined):
            p = logits.softmax(1)
            evidence += [p, -(p * p.clamp(min=1e-5).log()).sum(1, keepdim=True)]
        weights = self.ensembler.attn(torch.cat(evidence, 1)).softmax(1)
        return self.ensembler.fuser(weights[:, :1] * dense + weights[:, 1:] * refined)


def save(release: Release, path: Path, **changes: Tensor | None) -> Path:
    state = {f"model.{key}": value for key, value in release.state_dict().items()}
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    # Lightning keeps much else beside the weights.
    torch.save({"state_dict": state, "epoch": 499, "optimizer_states": [{}]}, path)
    return path


@pytest.mark.parametrize(("widths", "blocks"), [(WIDTHS, 2), ((8,), 1), ((4, 6, 6, 8), 1)])
@pytest.mark.parametrize("mask_name", ["odd", "border-frame", "one-middle", "inner-block"])
def test_logits_are_the_releases(
    tmp_path: Path, widths: tuple[int, ...], blocks: int, mask_name: str
) -> None:
    release = Release(widths, blocks).eval()
    refiner, spec = load_released_refiner(save(release, tmp_path / "r.ckpt"), CLASSES, file=FILE)
    assert (spec.kind, spec.widths, spec.blocks, spec.bounds) == ("unet", widths, blocks, "data")
    mask = oracle.example_masks()[mask_name]
    grid = torch.randn(mask.shape[0], 3, *mask.shape[2:])
    plan = build_plan(oracle.sites_of(mask), oracle.grid_of(mask), len(widths), bounds=spec.bounds)
    with torch.no_grad():
        expected = release.logits(grid, mask)
        found = refiner.extractor(oracle.grid_to_rows(grid, mask), plan)
    assert found.shape == (int(mask.sum()), CLASSES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_gate_is_the_releases(tmp_path: Path) -> None:
    release = Release().eval()
    refiner, _ = load_released_refiner(save(release, tmp_path / "r.ckpt"), CLASSES, file=FILE)
    dense, refined = torch.randn(2, 40, CLASSES) * 3
    with torch.no_grad():
        expected = release.fused(dense, refined)
        torch.testing.assert_close(refiner.ensembler(dense, refined), expected)


def test_pixels_go_in_as_bgr_with_the_statistics_of_rgb(tmp_path: Path) -> None:
    _, spec = load_released_refiner(save(Release(), tmp_path / "r.ckpt"), CLASSES, file=FILE)
    from sparserefine_ros.image import Normaliser

    image = np.array([[[10, 20, 30], [200, 100, 50]]], np.uint8)
    found = Normaliser(spec.normalisation).pixels_to_features(image, torch.tensor([1, 0]))
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    swapped = image[0, [1, 0], ::-1].astype(np.float64)
    np.testing.assert_allclose(found.numpy(), (swapped - mean) / std, rtol=1e-5)


def test_mistakes_are_listed_together(tmp_path: Path) -> None:
    changes = {
        "model.ensembler.attn.2.bias": None,
        "model.backbone.net.1.0.1.0.weight": torch.zeros(7),
        "model.selector.mlp.weight": torch.zeros(2),
    }
    path = save(Release(), tmp_path / "r.ckpt", **changes)
    with pytest.raises(CheckpointError) as caught:
        load_released_refiner(path, CLASSES, file=FILE)
    for part in (
        "ensembler.gate.2.bias is missing",
        "extractor.levels.before.0.norm1.weight: expected [6], got [7]",
        "selector.mlp.weight is unknown",
    ):
        assert part in str(caught.value)


def test_another_number_of_classes(tmp_path: Path) -> None:
    path = save(Release(), tmp_path / "r.ckpt")
    with pytest.raises(CheckpointError, match=r"extractor.head.weight: expected \[4, 6\], got \[3"):
        load_released_refiner(path, 4, file=FILE)


def test_something_else(tmp_path: Path) -> None:
    torch.save({"state_dict": {"model.conv.weight": torch.zeros(1)}}, tmp_path / "r.ckpt")
    with pytest.raises(CheckpointError, match=r"backbone.net.0.kernel.* got model.conv.weight"):
        load_released_refiner(tmp_path / "r.ckpt", CLASSES, file=FILE)


def test_a_bundle_gets_a_released_refiner_and_runs(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save(Release(), tmp_path / "r.ckpt")
    out = tmp_path / "new"
    arguments = ["bundle", "add-refiner", str(tiny_bundle), str(checkpoint), "--out", str(out)]
    before = Bundle.open(tiny_bundle)
    assert main([*arguments, "--entropy-threshold", "0.9"]) == 0
    assert str(out) in capsys.readouterr().out
    assert Bundle.open(tiny_bundle) == before
    bundle = Bundle.open(out)
    assert (bundle.name, before.name) == ("new", "tiny")
    assert bundle.spec.dense == before.spec.dense
    assert bundle.spec.refiner is not None
    assert bundle.spec.refiner.channel_order == "BGR"
    assert load_refiner(bundle).extractor.depth == len(WIDTHS)
    prediction = Pipeline(bundle)(smooth_picture(48, 64), frozenset({Map.LABELS}))
    assert prediction.refined_pixels > 0
    # log(3 classes) = 1.0986 is the greatest entropy there is.
    assert main([*arguments, "--entropy-threshold", "1.2"]) == 1
    assert "at most log(classes)" in capsys.readouterr().err
