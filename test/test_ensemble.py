# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparserefine_ros.bundle_spec import EnsemblerKind
from sparserefine_ros.ensemble import (
    Fuser,
    GatedEnsembler,
    make_ensembler,
    probabilities_and_entropy,
)
from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.kernels.library import Kernels

Array = NDArray[np.float64]
KINDS: tuple[EnsemblerKind, ...] = ("gated", "entropy", "direct")
CLASSES = 5


def logits_pair(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # The refined ones of row i are sharper for even i.
    sharpness = torch.where(torch.arange(count)[:, None] % 2 == 0, 6.0, 1.0)
    dense = 3 * torch.randn(count, CLASSES, generator=generator)
    return dense, sharpness * torch.randn(count, CLASSES, generator=generator)


def softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(1, keepdims=True))
    probabilities: Array = exponentials / exponentials.sum(1, keepdims=True)
    return probabilities


def entropy_of(logits: Array) -> Array:
    p = softmax(logits)
    entropies: Array = -(p * np.log(np.maximum(p, 1e-5))).sum(1, keepdims=True)
    return entropies


def naive_gate(ensembler: GatedEnsembler, dense: Array, refined: Array) -> Array:
    """The reference's gate written out, from the ensembler's weights by name."""
    w = {key: value.double().numpy() for key, value in ensembler.state_dict().items()}

    def mlp(name: str, x: Array) -> Array:
        hidden = np.maximum(x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"], 0)
        out: Array = hidden @ w[f"{name}.2.weight"].T + w[f"{name}.2.bias"]
        return out

    evidence = [softmax(dense), entropy_of(dense), softmax(refined), entropy_of(refined)]
    share = softmax(mlp("gate", np.concatenate(evidence, 1)))
    return mlp("mix", share[:, :1] * dense + share[:, 1:] * refined)


@pytest.mark.parametrize("classes", [2, 11, 32])
def test_a_fresh_gate_gives_back_what_both_agree_on(classes: int) -> None:
    torch.manual_seed(3)
    logits = torch.randn(50, classes)
    torch.testing.assert_close(GatedEnsembler(classes)(logits, logits), logits)


def test_a_fresh_gate_learns_in_every_layer() -> None:
    torch.manual_seed(3)
    gate = GatedEnsembler(11)
    before = {name: value.clone() for name, value in gate.named_parameters()}
    optimiser = torch.optim.SGD(gate.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            gate(torch.randn(200, 11), torch.randn(200, 11)), torch.arange(200) % 11
        )
        loss.backward()
        optimiser.step()
    assert all((value - before[name]).abs().max() > 0 for name, value in gate.named_parameters())
    unused = gate.mix[2].weight[:, 22:]
    assert unused.abs().max() > 0


def test_more_classes_than_fit_start_at_random() -> None:
    torch.manual_seed(3)
    logits = torch.randn(50, 33)
    fused = GatedEnsembler(33)(logits, logits)
    assert fused.shape == logits.shape
    assert not torch.allclose(fused, logits, atol=0.1)


def test_probabilities_and_entropy() -> None:
    logits, _ = logits_pair(50)
    probabilities, entropy = probabilities_and_entropy(logits * 4)
    expected = logits.double().numpy() * 4
    assert entropy.shape == (50, 1)
    np.testing.assert_allclose(probabilities, softmax(expected), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(entropy, entropy_of(expected), rtol=1e-5, atol=1e-6)


def test_gated_equals_the_written_out_gate() -> None:
    torch.manual_seed(4)
    ensembler = GatedEnsembler(CLASSES)
    dense, refined = logits_pair(200)
    before = dense.clone(), refined.clone()
    fused = ensembler(dense, refined).detach()
    expected = naive_gate(ensembler, dense.double().numpy(), refined.double().numpy())
    np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(dense, before[0])
    assert torch.equal(refined, before[1])


def test_gated_has_the_reference_s_sizes() -> None:
    shapes = {key: tuple(value.shape) for key, value in GatedEnsembler(19).state_dict().items()}
    assert shapes == {
        "gate.0.weight": (64, 40), "gate.0.bias": (64,),
        "gate.2.weight": (2, 64), "gate.2.bias": (2,),
        "mix.0.weight": (64, 19), "mix.0.bias": (64,),
        "mix.2.weight": (19, 64), "mix.2.bias": (19,),
    }  # fmt: skip


def test_gated_learns_from_both_inputs() -> None:
    torch.manual_seed(4)
    ensembler = GatedEnsembler(CLASSES)
    dense, refined = (part.requires_grad_() for part in logits_pair(20))
    ensembler(dense, refined).square().sum().backward()
    for tensor in (dense, refined, *ensembler.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


def test_entropy_keeps_the_surer_one() -> None:
    dense, refined = logits_pair(300)
    fused = make_ensembler("entropy", CLASSES)(dense, refined)
    surer = entropy_of(refined.double().numpy()) < entropy_of(dense.double().numpy())
    assert 60 < surer.sum() < 240
    assert np.array_equal(fused, np.where(surer, refined, dense))


def test_entropy_prefers_the_dense_one_when_equal() -> None:
    # Of two classes, for sums of more depend on the order that a processor takes.
    dense = torch.tensor([[1.0, 3.0]])
    refined = torch.tensor([[3.0, 1.0]])
    assert torch.equal(make_ensembler("entropy", 2)(dense, refined), dense)


def test_direct_is_the_refined_one() -> None:
    dense, refined = logits_pair(9)
    assert torch.equal(make_ensembler("direct", CLASSES)(dense, refined), refined)


@pytest.fixture(params=["compiled", "pytorch"])
def gate_kernels(request: pytest.FixtureRequest) -> Kernels | None:
    return request.getfixturevalue("kernels") if request.param == "compiled" else None


@pytest.mark.parametrize("kind", KINDS)
def test_fuser_summarises_the_fused_logits(
    kind: EnsemblerKind, gate_kernels: Kernels | None
) -> None:
    torch.manual_seed(4)
    ensembler = make_ensembler(kind, CLASSES).eval()
    dense, refined = logits_pair(123)
    fused = ensembler(dense, refined).detach().double().numpy()
    result = Fuser(ensembler, gate_kernels)(dense, refined)
    assert result.labels.tolist() == fused.argmax(1).tolist()
    np.testing.assert_allclose(result.entropy, entropy_of(fused)[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.top_probability, softmax(fused).max(1), rtol=1e-4)


def test_fuser_survives_extreme_logits(gate_kernels: Kernels | None) -> None:
    torch.manual_seed(4)
    ensembler = GatedEnsembler(CLASSES)
    dense = torch.zeros(4, CLASSES)
    refined = torch.zeros(4, CLASSES)
    # As a dense model with probabilities gives: log(1e-10) for all but one class, and worse.
    dense[1], dense[1, 2] = -23.0, 0.0
    refined[2, 1], refined[3, 0] = 90.0, -1e4
    result = Fuser(ensembler, gate_kernels)(dense, refined)
    expected = naive_gate(ensembler, dense.double().numpy(), refined.double().numpy())
    assert result.entropy.isfinite().all()
    np.testing.assert_allclose(result.entropy, entropy_of(expected)[:, 0], rtol=1e-3, atol=1e-5)


def test_fuser_keeps_what_is_no_number(gate_kernels: Kernels | None) -> None:
    dense, refined = logits_pair(9)
    refined[4, 1] = float("nan")
    result = Fuser(GatedEnsembler(CLASSES), gate_kernels)(dense, refined)
    assert result.entropy.isnan().nonzero().tolist() == [[4]]


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind: EnsemblerKind, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    ensembler = make_ensembler(kind, CLASSES).eval()
    dense, refined = logits_pair(101)
    whole = Fuser(ensembler)(dense, refined)
    monkeypatch.setattr("sparserefine_ros.ensemble._FUSED_AT_ONCE", 7)
    pieces = Fuser(ensembler)(dense, refined)
    assert torch.equal(whole.labels, pieces.labels)
    # Matrix products of other shapes may sum in another order.
    torch.testing.assert_close(whole.entropy, pieces.entropy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.top_probability, pieces.top_probability, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_pixels(kind: EnsemblerKind, gate_kernels: Kernels | None) -> None:
    result = Fuser(make_ensembler(kind, CLASSES), gate_kernels)(*logits_pair(0))
    assert result.entropy.shape == result.labels.shape == result.top_probability.shape == (0,)


def test_an_unknown_kind_cannot_come_from_a_bundle() -> None:
    with pytest.raises((KeyError, SparseRefineError)):
        make_ensembler("vote", CLASSES)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 33, 1000])
def test_compiled_gate_at_any_number_of_pixels_and_pitch(count: int, kernels: Kernels) -> None:
    torch.manual_seed(4)
    ensembler = GatedEnsembler(CLASSES)
    dense, refined = logits_pair(count)
    wide = torch.full((count, CLASSES + 5), float("nan"))
    wide[:, 2 : 2 + CLASSES] = dense
    compiled = Fuser(ensembler, kernels)(wide[:, 2 : 2 + CLASSES], refined)
    plain = Fuser(ensembler)(dense, refined)
    assert torch.equal(compiled.labels, plain.labels)
    torch.testing.assert_close(compiled.entropy, plain.entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.top_probability, plain.top_probability)
