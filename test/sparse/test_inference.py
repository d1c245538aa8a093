# SPDX-License-Identifier: Apache-2.0
"""The two folded networks for inference, `sparse.pytorch` and `sparse.compiled`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from conftest import random_statistics
from oracle import DenseUNet, example_masks, grid_of, grid_to_rows, rows_to_grid, sites_of
from torch import Tensor

from sparserefine_ros.kernels import winograd
from sparserefine_ros.kernels.convolution import Convolution
from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.sparse import compiled
from sparserefine_ros.sparse.compiled import CompiledUNet
from sparserefine_ros.sparse.plan import Bounds, build_plan
from sparserefine_ros.sparse.pytorch import PyTorchUNet
from sparserefine_ros.sparse.unet import SparseUNet

pytestmark = pytest.mark.usefixtures("poisoned_memory")

MASKS = example_masks()
INPUTS, CLASSES = 4, 3
Make: TypeAlias = Callable[[SparseUNet], PyTorchUNet | CompiledUNet]

# Float32 with the norms folded into the weights: about ten layers, each within a few 1e-6 of the
# largest activation.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def make_unet(**options: Any) -> SparseUNet:
    torch.manual_seed(31)
    unet = SparseUNet(INPUTS, CLASSES, **{"widths": (4, 6, 5), "blocks": 2, **options})
    random_statistics(unet)
    return unet.eval()


@pytest.fixture(params=["pytorch", "compiled", "compiled-winograd"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The last one takes Winograd's products everywhere, which only wider networks do, and only
    where the sites lie close together."""
    if request.param == "pytorch":
        return PyTorchUNet
    kernels = request.getfixturevalue("kernels")
    few = 1 if request.param == "compiled-winograd" else 10**6
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", few)
    monkeypatch.setattr(winograd, "LEAST_SITES", 0)
    return lambda unet: CompiledUNet(unet, kernels, threads=2)


@pytest.mark.parametrize(("side", "close"), [(2, False), (12, True)])
def test_winograds_products_only_where_sites_lie_close(
    side: int, close: bool, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squares of sites, of that side, far apart."""
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask.view(4, 16, 4, 16)[:, :side, :, :side] = True
    unet = make_unet(widths=(32,))
    plan = build_plan(sites_of(mask), grid_of(mask), 1)
    add, taken = compiled.Convolver.add, []

    def watched(self: Any, *parts: Convolution, **named: Any) -> None:
        taken.extend(part.tiles is not None for part in parts)
        add(self, *parts, **named)

    monkeypatch.setattr(compiled.Convolver, "add", watched)
    features = make_features(mask)
    logits = CompiledUNet(unet, kernels, threads=1)(features, plan)
    torch.testing.assert_close(logits, unet(features, plan), **TOLERANCE)
    assert any(taken) == close


def test_a_frame_that_failed_leaves_nothing_behind(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, unet = MASKS["odd"], make_unet()
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth)
    features = make_features(mask)
    compiled_unet, steps = CompiledUNet(unet, kernels, threads=1), []
    expected = compiled_unet(features, plan).clone()
    run, take = compiled.Convolver.run, compiled.Convolver.take

    def failing(self: Any, slot: str, *given: Any) -> Tensor:
        if slot == "logits":
            raise MemoryError
        return take(self, slot, *given)

    def counted(self: compiled.Convolver) -> None:
        steps.append(len(self._steps))
        run(self)

    with monkeypatch.context() as patched:
        patched.setattr(compiled.Convolver, "take", failing)
        with pytest.raises(MemoryError):
            compiled_unet(features, plan)
    monkeypatch.setattr(compiled.Convolver, "run", counted)
    for _ in range(2):
        assert torch.equal(compiled_unet(features, plan), expected)
    assert steps[0] == steps[1]


def make_features(mask: Tensor, seed: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(mask.sum()), INPUTS, generator=generator)


def oracle_logits(unet: SparseUNet, features: Tensor, mask: Tensor, bounds: str) -> Tensor:
    weights = {key: value.detach().double() for key, value in unet.state_dict().items()}
    dense = DenseUNet(weights, bounds, training=False)
    return grid_to_rows(dense(rows_to_grid(features.double(), mask), mask), mask).float()


@pytest.mark.parametrize("bounds", ["image", "data"])
@pytest.mark.parametrize("name", MASKS)
def test_equals_the_training_network_and_the_oracle(name: str, bounds: Bounds, make: Make) -> None:
    mask, unet = MASKS[name], make_unet()
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth, bounds=bounds)
    features = make_features(mask)
    logits = make(unet)(features, plan)
    assert logits.shape == (int(mask.sum()), CLASSES)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, unet(features, plan), **TOLERANCE)
    torch.testing.assert_close(logits, oracle_logits(unet, features, mask, bounds), **TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [{"widths": (5,)}, {"widths": (4, 8), "blocks": 1}, {"widths": (3, 4, 5, 6), "blocks": 3}],
    ids=["one-level", "one-block", "four-levels"],
)
def test_other_sizes_of_network(options: dict[str, Any], make: Make) -> None:
    mask, unet = MASKS["odd"], make_unet(**options)
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth)
    features = make_features(mask)
    torch.testing.assert_close(make(unet)(features, plan), unet(features, plan), **TOLERANCE)


def test_buffers_are_reused_across_sizes_without_traces(make: Make) -> None:
    unet = make_unet()
    folded = make(unet)
    names = [
        "sparse",
        "full",
        "odd-even-dense",
        "empty",
        "one-pixel-picture",
        "batch",
        "odd",
        "full",
    ]
    for seed, name in enumerate(names):
        mask = MASKS[name]
        plan = build_plan(sites_of(mask), grid_of(mask), unet.depth)
        features = make_features(mask, seed)
        first = folded(features, plan)
        torch.testing.assert_close(first, oracle_logits(unet, features, mask, "image"), **TOLERANCE)
        kept = first.clone()
        assert torch.equal(folded(features, plan), kept)
        assert torch.equal(first, kept)


def test_leaves_its_input_alone_and_wants_no_gradient(make: Make) -> None:
    mask, unet = MASKS["odd"], make_unet()
    features = make_features(mask)
    before = features.clone()
    logits = make(unet)(features, build_plan(sites_of(mask), grid_of(mask), unet.depth))
    assert torch.equal(features, before)
    assert not logits.requires_grad


def test_what_is_no_number_reaches_the_logits(make: Make) -> None:
    mask, unet = MASKS["odd"], make_unet()
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth)
    features = make_features(mask)
    features[0, 0] = float("nan")
    reached = unet(features, plan).isnan()
    assert reached.any()
    assert make(unet)(features, plan)[reached].isnan().all()


def test_many_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, unet = MASKS["odd"], make_unet()
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth)
    features = make_features(mask)
    whole = PyTorchUNet(unet)(features, plan)
    monkeypatch.setattr("sparserefine_ros.sparse.convolve._CHUNK_ELEMENTS", 100)
    torch.testing.assert_close(PyTorchUNet(unet)(features, plan), whole, **TOLERANCE)


@pytest.mark.parametrize("bounds", ["image", "data"])
@pytest.mark.parametrize("name", MASKS)
def test_bfloat16_is_within_one_percent_of_the_oracle(
    name: str, bounds: Bounds, kernels: Kernels
) -> None:
    """A product of bfloat16 is off by up to 0.8 percent, at random."""
    mask, unet = MASKS[name], make_unet(widths=(16, 33, 70))
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth, bounds=bounds)
    features = make_features(mask)
    logits = CompiledUNet(unet, kernels, threads=2, dtype=torch.bfloat16)(features, plan)
    expected = oracle_logits(unet, features, mask, bounds)
    assert logits.dtype == torch.float32
    assert logits.shape == expected.shape
    assert (logits - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("widths", [(16, 24), (33, 70, 100), (144, 272)], ids=str)
def test_wide_networks_and_any_number_of_threads(
    widths: tuple[int, ...], threads: int, kernels: Kernels
) -> None:
    unet = make_unet(widths=widths, blocks=1)
    mask = torch.rand(2, 1, 61, 83, generator=torch.Generator().manual_seed(5)) < 0.4
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth)
    features = make_features(mask)
    logits = CompiledUNet(unet, kernels, threads=threads)(features, plan).clone()
    torch.testing.assert_close(logits, unet(features, plan), rtol=3e-4, atol=3e-4)
    assert torch.equal(logits, CompiledUNet(unet, kernels, threads=1)(features, plan))


@pytest.mark.parametrize("used_before", [False, True], ids=["fresh", "used"])
def test_is_a_copy_that_further_training_does_not_change(used_before: bool, make: Make) -> None:
    mask, unet = MASKS["odd"], make_unet()
    plan = build_plan(sites_of(mask), grid_of(mask), unet.depth)
    features = make_features(mask)
    expected = unet(features, plan).detach()
    folded = make(unet)
    if used_before:
        folded(features, plan)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    torch.testing.assert_close(folded(features, plan), expected, **TOLERANCE)
