# SPDX-License-Identifier: Apache-2.0
"""Fusion of dense and refined logits at the selected pixels.

Shape legend: N selected pixels; C classes. Logits are float32 [N, C]; y1 dense, y2 refined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparserefine_ros.bundle_spec import EnsemblerKind
from sparserefine_ros.kernels.fusion import CompiledGate
from sparserefine_ros.kernels.library import Kernels
from sparserefine_ros.oracle import truth_for_oracle
from sparserefine_ros.records import Uncertainty
from sparserefine_ros.uncertainty import LOG_PROBABILITY_FLOOR, summarise_columns

_HIDDEN: Final = 64

# Pixels fused at a time, so that the hidden activations stay in cache.
_FUSED_AT_ONCE: Final = 8192


def probabilities_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax [N, C] and entropy in nats [N, 1] as the reference defines it."""
    log_probabilities = F.log_softmax(logits, 1)
    probabilities = log_probabilities.exp()
    floored = log_probabilities.clamp_min(LOG_PROBABILITY_FLOOR)
    return probabilities, -(probabilities * floored).sum(1, keepdim=True)


class GatedEnsembler(nn.Module):
    """The reference's learnt gate: w = softmax(MLP([p1; e1; p2; e2])), then MLP(w1 y1 + w2 y2).

    The last MLP starts as the identity, so that training begins with what the dense model knows;
    with more than 32 classes, for which it has too few hidden units, it starts at random.

    Attributes:
        classes: C.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.gate = nn.Sequential(
            nn.Linear(2 * (classes + 1), _HIDDEN), nn.ReLU(inplace=True), nn.Linear(_HIDDEN, 2)
        )
        self.mix = nn.Sequential(
            nn.Linear(classes, _HIDDEN), nn.ReLU(inplace=True), nn.Linear(_HIDDEN, classes)
        )
        if 2 * classes <= _HIDDEN:
            _make_identity(*_linear_layers(self.mix))

    def forward(self, dense_logits: Tensor, refined_logits: Tensor) -> Tensor:
        """Two [N, C] -> fused logits [N, C]."""
        evidence = [
            *probabilities_and_entropy(dense_logits),
            *probabilities_and_entropy(refined_logits),
        ]
        weights = self.gate(torch.cat(evidence, 1)).softmax(1)
        return self.mix(weights[:, :1] * dense_logits + weights[:, 1:] * refined_logits)  # type: ignore[no-any-return]

    @torch.no_grad()
    def divide_logits(self, temperature: float) -> None:
        """Let the fused logits be divided by a number, which changes no label."""
        last = _linear_layers(self.mix)[-1]
        last.weight.div_(temperature)
        last.bias.div_(temperature)


@torch.no_grad()
def _make_identity(first: nn.Linear, second: nn.Linear) -> None:
    """Let two layers with a ReLU between give back their input: x = relu(x) - relu(-x).

    Hidden units that are not needed for it see the input as before, but add nothing yet.
    """
    sides = torch.eye(first.in_features)
    signed = torch.cat([sides, -sides])
    first.weight[: len(signed)] = signed
    first.bias[: len(signed)] = 0.0
    second.weight.zero_()
    second.weight[:, : len(signed)] = signed.t()
    second.bias.zero_()


class EntropyEnsembler(nn.Module):
    """Keeps whichever of the two has the lower entropy; the dense one when equal."""

    def forward(self, dense_logits: Tensor, refined_logits: Tensor) -> Tensor:
        """Two [N, C] -> fused logits [N, C]."""
        _, dense_entropy = probabilities_and_entropy(dense_logits)
        _, refined_entropy = probabilities_and_entropy(refined_logits)
        return torch.where(refined_entropy < dense_entropy, refined_logits, dense_logits)


class DirectEnsembler(nn.Module):
    """Takes the refined logits."""

    def forward(self, dense_logits: Tensor, refined_logits: Tensor) -> Tensor:
        """Two [N, C] -> the refined one."""
        return refined_logits


class OracleEnsembler(DirectEnsembler):
    """Keeps the dense logits where they are right by the labels: the bound of all ensemblers.

    It trains as `DirectEnsembler` does; `Fuser` chooses.
    """


_ENSEMBLERS: Mapping[EnsemblerKind, Callable[[int], nn.Module]] = {
    "gated": GatedEnsembler,
    "entropy": lambda classes: EntropyEnsembler(),
    "direct": lambda classes: DirectEnsembler(),
    "oracle": lambda classes: OracleEnsembler(),
}


def make_ensembler(kind: EnsemblerKind, classes: int) -> nn.Module:
    """Ensembler by name for C classes, with fresh weights where it has any."""
    return _ENSEMBLERS[kind](classes)


class FoldedGate:
    """A trained `GatedEnsembler` for inference on columns: classes first, pixels innermost.

    Softmax over 11 or 19 classes vectorises along the pixels, several times faster than along rows.
    """

    def __init__(self, ensembler: GatedEnsembler) -> None:
        gate_in, gate_out = _linear_layers(ensembler.gate)
        mix_in, mix_out = _linear_layers(ensembler.mix)
        # A softmax over two values is the sigmoid of their difference.
        self._gate_in = (gate_in.bias.detach()[:, None], gate_in.weight.detach())
        weight, bias = gate_out.weight.detach(), gate_out.bias.detach()
        self._gate_out = (weight[:1] - weight[1:], bias[0] - bias[1])
        self._mix_in = (mix_in.bias.detach()[:, None], mix_in.weight.detach())
        self._mix_out = (mix_out.bias.detach()[:, None], mix_out.weight.detach())

    def __call__(self, dense: Tensor, refined: Tensor) -> Tensor:
        """Dense and refined logits [C, n] -> fused logits [C, n]."""
        classes, count = dense.shape
        evidence = dense.new_empty(2 * (classes + 1), count)
        _probabilities_and_entropy_into(dense, evidence[: classes + 1])
        _probabilities_and_entropy_into(refined, evidence[classes + 1 :])
        hidden = torch.addmm(*self._gate_in, evidence).relu_()
        weight, bias = self._gate_out
        dense_share = torch.sigmoid_(weight @ hidden + bias)
        mixed = torch.lerp(refined, dense, dense_share)
        return torch.addmm(*self._mix_out, torch.addmm(*self._mix_in, mixed).relu_())


def _linear_layers(layers: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def _probabilities_and_entropy_into(logits: Tensor, out: Tensor) -> None:
    """Columns of `probabilities_and_entropy`: [C, n] -> [C + 1, n]."""
    log_probabilities = logits - logits.amax(0)
    probabilities = torch.exp(log_probabilities, out=out[:-1])
    total = probabilities.sum(0)
    probabilities.div_(total)
    log_probabilities.sub_(total.log_()).clamp_min_(LOG_PROBABILITY_FLOOR)
    torch.sum(log_probabilities.mul_(probabilities), 0, out=out[-1]).neg_()


class Fuser:
    """Fuses without gradients and summarises the result.

    Args:
        ensembler: as `make_ensembler` returns.
        kernels: compiled kernels for the gate; None for PyTorch.
    """

    def __init__(self, ensembler: nn.Module, kernels: Kernels | None = None) -> None:
        self._oracle = isinstance(ensembler, OracleEnsembler)
        self._compiled: CompiledGate | None = None
        self._fuse_columns: Callable[[Tensor, Tensor], Tensor] = _on_columns(ensembler)
        if isinstance(ensembler, GatedEnsembler):
            self._fuse_columns = FoldedGate(ensembler)
            if kernels is not None:
                layers = _linear_layers(ensembler.gate) + _linear_layers(ensembler.mix)
                self._compiled = CompiledGate(kernels, *layers)

    def __call__(
        self, dense_logits: Tensor, refined_logits: Tensor, truth: Tensor | None = None
    ) -> Uncertainty:
        """Entropy, labels and top probability of the fused logits, [N].

        Args:
            dense_logits: float32 [N, C].
            refined_logits: float32 [N, C].
            truth: class ids, uint8 [N]; only an oracle looks at them.

        Raises:
            ConfigurationError: an oracle without truth.
        """
        if self._oracle:
            right = dense_logits.argmax(1) == truth_for_oracle(truth, "ensembler")
            refined_logits = torch.where(right[:, None], dense_logits, refined_logits)
        if self._compiled is not None:
            return Uncertainty(*self._compiled(dense_logits, refined_logits))
        count, classes = dense_logits.shape
        columns = dense_logits.new_empty(classes, count)
        with torch.inference_mode():
            for start in range(0, count, _FUSED_AT_ONCE):
                chunk = slice(start, start + _FUSED_AT_ONCE)
                dense = dense_logits[chunk].t().contiguous()
                refined = refined_logits[chunk].t().contiguous()
                columns[:, chunk] = self._fuse_columns(dense, refined)
        return Uncertainty(*summarise_columns(columns))


def _on_columns(ensembler: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def fuse_columns(dense: Tensor, refined: Tensor) -> Tensor:
        return ensembler(dense.t(), refined.t()).t()  # type: ignore[no-any-return]

    return fuse_columns
