# SPDX-License-Identifier: Apache-2.0
"""MMSegmentation checkpoints against networks computed from their tensors by plain functions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from zoo import mmseg_names
from zoo.small_models import HRNET, SEGNEXT

from sparserefine_ros.errors import CheckpointError
from sparserefine_ros.zoo import hrnet, segnext
from sparserefine_ros.zoo.checkpoints import mmseg
from sparserefine_ros.zoo.network import DenseNetwork

CLASSES = 4
B0_WIDTHS, B0_DEPTHS, B0_HEAD = (32, 64, 160, 256), (2, 2, 2, 2), 256
HEADS = (1, 2, 5, 8)


def picture(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(9))


def save(state: Mapping[str, Tensor], path: Path, **beside: object) -> Path:
    torch.save({"meta": {"epoch": 3}, "state_dict": dict(state), **beside}, path)
    return path


def run(network: DenseNetwork, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image)


def layer_norm(state: Mapping[str, Tensor], at: str, x: Tensor) -> Tensor:
    weight, bias = state[f"{at}.weight"], state[f"{at}.bias"]
    return F.layer_norm(x, weight.shape, weight, bias, eps=1e-6)


def batch_norm(state: Mapping[str, Tensor], at: str, x: Tensor) -> Tensor:
    fields = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{at}.{field}"] for field in fields))


def convolved(state: Mapping[str, Tensor], at: str, x: Tensor, **how: int) -> Tensor:
    return F.conv2d(x, state[f"{at}.weight"], state.get(f"{at}.bias"), **how)


def mmseg_attention(
    state: Mapping[str, Tensor], at: str, x: Tensor, size: tuple[int, int], heads: int
) -> Tensor:
    """Rows [1, N, width] -> [1, N, width]."""
    kept = x
    if f"{at}.sr.weight" in state:
        ratio = state[f"{at}.sr.weight"].shape[-1]
        grid = x.transpose(1, 2).unflatten(2, size)
        kept = convolved(state, f"{at}.sr", grid, stride=ratio).flatten(2).transpose(1, 2)
        kept = layer_norm(state, f"{at}.norm", kept)
    attention = torch.nn.MultiheadAttention(x.shape[2], heads, batch_first=True)
    prefix = f"{at}.attn."
    attention.load_state_dict(
        {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    )
    return attention(x, kept, kept)[0]


def mmseg_segformer(state: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """What MMSegmentation computes from such a state dict."""
    x, levels = image, []
    for i in range(4):
        at = f"backbone.layers.{i}"
        kernel = state[f"{at}.0.projection.weight"].shape[-1]
        x = convolved(
            state, f"{at}.0.projection", x, stride=4 if i == 0 else 2, padding=kernel // 2
        )
        size = (x.shape[2], x.shape[3])
        rows = layer_norm(state, f"{at}.0.norm", x.flatten(2).transpose(1, 2))
        for j in range(B0_DEPTHS[i]):
            block = f"{at}.1.{j}"
            normed = layer_norm(state, f"{block}.norm1", rows)
            rows = rows + mmseg_attention(state, f"{block}.attn", normed, size, HEADS[i])
            grid = layer_norm(state, f"{block}.norm2", rows).transpose(1, 2).unflatten(2, size)
            hidden = convolved(state, f"{block}.ffn.layers.0", grid)
            groups = hidden.shape[1]
            hidden = convolved(state, f"{block}.ffn.layers.1", hidden, padding=1, groups=groups)
            grid = convolved(state, f"{block}.ffn.layers.4", F.gelu(hidden))
            rows = rows + grid.flatten(2).transpose(1, 2)
        x = layer_norm(state, f"{at}.2", rows).transpose(1, 2).unflatten(2, size)
        levels.append(x)
    parts = []
    for i, level in enumerate(levels):
        at = f"decode_head.convs.{i}"
        part = F.relu(batch_norm(state, f"{at}.bn", convolved(state, f"{at}.conv", level)))
        parts.append(F.interpolate(part, levels[0].shape[2:], mode="bilinear"))
    fused = convolved(state, "decode_head.fusion_conv.conv", torch.cat(parts, 1))
    fused = F.relu(batch_norm(state, "decode_head.fusion_conv.bn", fused))
    return convolved(state, "decode_head.conv_seg", fused)


@pytest.fixture(scope="module")
def segformer_state() -> dict[str, Tensor]:
    shapes = mmseg_names.segformer(B0_WIDTHS, B0_DEPTHS, B0_HEAD, CLASSES)
    return mmseg_names.random_state(shapes)


class TestSegFormer:
    def test_computes_what_mmsegmentation_computes(
        self, segformer_state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        path = save(segformer_state, tmp_path / "b0.pth")
        network = mmseg.load_mmseg("segformer-b0", CLASSES, path)
        assert not network.training
        image = picture()
        with torch.no_grad():
            expected = mmseg_segformer(segformer_state, image)
        assert expected.std() > 0.1
        # Float32 through some thirty layers, summed in other orders.
        torch.testing.assert_close(run(network, image), expected, rtol=1e-3, atol=1e-3)

    def test_the_authors_names_with_fused_key_and_value(
        self, segformer_state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        """The encoders agree; the authors' head, without norms, is compared by hand."""
        state = authors_state(segformer_state, head=24)
        network = mmseg.load_mmseg("segformer-b0", CLASSES, save(state, tmp_path / "a.pth"))
        same = mmseg.load_mmseg("segformer-b0", CLASSES, save(segformer_state, tmp_path / "m.pth"))
        image = picture()
        with torch.no_grad():
            levels = network.model.segformer(image, output_hidden_states=True).hidden_states
            theirs = same.model.segformer(image, output_hidden_states=True).hidden_states
            parts = [
                F.interpolate(
                    F.linear(
                        level.permute(0, 2, 3, 1),
                        state[f"decode_head.linear_c{i}.proj.weight"],
                        state[f"decode_head.linear_c{i}.proj.bias"],
                    ).permute(0, 3, 1, 2),
                    levels[0].shape[2:],
                    mode="bilinear",
                )
                for i, level in enumerate(levels, start=1)
            ]
            fused = convolved(state, "decode_head.linear_fuse.conv", torch.cat(parts[::-1], 1))
            fused = F.relu(batch_norm(state, "decode_head.linear_fuse.bn", fused))
            expected = convolved(state, "decode_head.linear_pred", fused)
        for mine, other in zip(levels, theirs, strict=True):
            # The epsilon of the norms differs: 1e-5 here, 1e-6 in MMSegmentation.
            torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(run(network, image), expected, rtol=1e-4, atol=1e-4)

    def test_missing_unknown_and_misshapen_tensors_are_listed_together(
        self, segformer_state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        state = dict(segformer_state)
        del state["backbone.layers.1.1.0.norm2.weight"]
        state["neck.conv.weight"] = torch.zeros(2)
        state["backbone.layers.0.2.bias"] = torch.zeros(5)
        with pytest.raises(CheckpointError) as caught:
            mmseg.load_mmseg("segformer-b0", CLASSES, save(state, tmp_path / "b0.pth"))
        text = str(caught.value)
        assert "b0.pth" in text
        assert "1 is missing" not in text
        for part in ("is missing", "neck.conv.weight is unknown", "expected [32], got [5]"):
            assert part in text

    def test_another_number_of_classes(
        self, segformer_state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        path = save(segformer_state, tmp_path / "b0.pth")
        with pytest.raises(CheckpointError, match=r"conv_seg.weight: expected \[7, 256, 1, 1\]"):
            mmseg.load_mmseg("segformer-b0", 7, path)


def authors_state(state: Mapping[str, Tensor], *, head: int) -> dict[str, Tensor]:
    """An MMSegmentation encoder by the names of the authors' code, with a head of theirs."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith("backbone.layers."):
            continue
        _, _, stage, part, rest = key.split(".", 4)
        n = int(stage) + 1
        if part == "0":
            rest = rest.replace("projection.", "proj.")
            renamed[f"backbone.patch_embed{n}.{rest}"] = value
        elif part == "2":
            renamed[f"backbone.norm{n}.{rest}"] = value
        else:
            at = f"backbone.block{n}."
            if "in_proj_" in rest:
                prefix, field = rest.split("attn.in_proj_")
                query, keys_and_values = value.split([value.shape[0] // 3, 2 * value.shape[0] // 3])
                renamed[f"{at}{prefix}q.{field}"] = query
                renamed[f"{at}{prefix}kv.{field}"] = keys_and_values
                continue
            if rest.endswith(("ffn.layers.0.weight", "ffn.layers.4.weight")):
                value = value[:, :, 0, 0]
            for theirs, authors in (
                ("attn.attn.out_proj", "attn.proj"), ("ffn.layers.0", "mlp.fc1"),
                ("ffn.layers.1", "mlp.dwconv.dwconv"), ("ffn.layers.4", "mlp.fc2"),
            ):  # fmt: skip
                rest = rest.replace(theirs, authors)
            renamed[f"{at}{rest}"] = value
    shapes: mmseg_names.Shapes = {}
    for i, width in enumerate(B0_WIDTHS, start=1):
        shapes |= mmseg_names.biased(f"decode_head.linear_c{i}.proj", head, width)
    fuse = "decode_head.linear_fuse"
    shapes |= mmseg_names.conv_norm(f"{fuse}.conv", f"{fuse}.bn", head, 4 * head, 1, 1)
    shapes |= mmseg_names.biased("decode_head.linear_pred", CLASSES, head, 1, 1)
    shapes |= mmseg_names.biased("decode_head.conv_seg", CLASSES, 128, 1, 1)
    return renamed | mmseg_names.random_state(shapes, seed=6)


class TestConvolutionalNetworks:
    def test_names_and_shapes_of_hrnet_w48(self) -> None:
        with torch.device("meta"):
            found = hrnet.HRNet(19).state_dict()
        expected = mmseg_names.hrnet((48, 96, 192, 384), (1, 4, 3), 4, 19)
        assert {key: tuple(value.shape) for key, value in found.items()} == expected

    def test_names_and_shapes_of_segnext_l(self) -> None:
        with torch.device("meta"):
            found = segnext.SegNeXt(19).state_dict()
        expected = mmseg_names.segnext((64, 128, 320, 512), (3, 5, 27, 3), (8, 8, 4, 4), 1024, 19)
        assert {key: tuple(value.shape) for key, value in found.items()} == expected

    def test_hrnet_round_trip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mmseg, "HRNet", functools.partial(hrnet.HRNet, **HRNET))
        shapes = mmseg_names.hrnet(*HRNET.values(), CLASSES)
        state = mmseg_names.random_state(shapes)
        extra = {
            "auxiliary_head.conv_seg.weight": torch.zeros(1),
            "data_preprocessor.mean": torch.zeros(3, 1, 1),
        }
        path = save(state | extra, tmp_path / "hrnet.pth")
        network = mmseg.load_mmseg("hrnet-w48", CLASSES, path)
        for key, value in network.state_dict().items():
            torch.testing.assert_close(value, state[key], rtol=0, atol=0, msg=key)
        assert run(network, picture()).shape == (1, CLASSES, 16, 24)

    def test_segnext_round_trip_also_with_its_authors_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mmseg, "SegNeXt", functools.partial(segnext.SegNeXt, size=SEGNEXT))
        size = SEGNEXT
        shapes = mmseg_names.segnext(size.widths, size.depths, size.expansions, size.head, CLASSES)
        state = mmseg_names.random_state(shapes)
        nested = {key.replace("mlp.dwconv.", "mlp.dwconv.dwconv."): v for key, v in state.items()}
        nested["decode_head.hamburger.ham.bases"] = torch.zeros(1, 64, 16)
        image = picture()
        outputs = [
            run(mmseg.load_mmseg("segnext-l", CLASSES, save(named, tmp_path / "s.pth")), image)
            for named in (state, nested)
        ]
        assert outputs[0].shape == (1, CLASSES, 8, 12)
        assert torch.equal(*outputs)

    def test_older_checkpoints_without_counters(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mmseg, "HRNet", functools.partial(hrnet.HRNet, **HRNET))
        shapes = mmseg_names.hrnet(*HRNET.values(), CLASSES)
        state = {
            key: value
            for key, value in mmseg_names.random_state(shapes).items()
            if not key.endswith("num_batches_tracked")
        }
        network = mmseg.load_mmseg("hrnet-w48", CLASSES, save(state, tmp_path / "hrnet.pth"))
        for key, value in state.items():
            assert torch.equal(network.state_dict()[key], value), key

    def test_nan_is_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mmseg, "HRNet", functools.partial(hrnet.HRNet, **HRNET))
        state = mmseg_names.random_state(mmseg_names.hrnet(*HRNET.values(), CLASSES))
        state["backbone.conv2.weight"][0, 0, 0, 0] = torch.nan
        with pytest.raises(CheckpointError, match=r"backbone.conv2.weight holds NaN"):
            mmseg.load_mmseg("hrnet-w48", CLASSES, save(state, tmp_path / "hrnet.pth"))


def test_a_network_that_mmsegmentation_lacks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"one of hrnet-w48, segformer-b0, .*'ladder-lite0'"):
        mmseg.load_mmseg("ladder-lite0", CLASSES, tmp_path / "x.pth")
