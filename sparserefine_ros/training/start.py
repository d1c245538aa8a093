# SPDX-License-Identifier: Apache-2.0
"""Starts a refiner from one that was trained before, for this dense model or another.

Most of what a refiner has learnt, how edges look at full resolution, does not depend on the dense
model. What does is left as it was: the weights of another model's features, unless that is the
source's trained on; where the classes differ those of the logits, the head and the ensembler; where
pictures are normalised otherwise those of RGB.
"""

from __future__ import annotations

import torch

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.image import Normalisation
from sparserefine_ros.refiner import Refiner, load_refiner

# The layers that see the features per pixel, which are the second axis of both.
_FIRST_LAYERS = ("extractor.stem.kernel", "extractor.alone.0.0.weight")


@torch.no_grad()
def start_from(refiner: Refiner, bundle: Bundle, source: Bundle) -> float:
    """Copy the weights of the source's refiner that mean the same here.

    Args:
        refiner: what is to be trained; changed in place.
        bundle: describes `refiner`.
        source: a bundle with a trained refiner.

    Returns:
        Share of the refiner's numbers that were copied, in (0, 1].

    Raises:
        BundleError: the source has no refiner, or not whole.
        ConfigurationError: no weight fits.
    """
    learnt = load_refiner(source).state_dict()
    same_classes = bundle.class_names == source.class_names
    copied, total = 0, 0
    for key, target in refiner.state_dict().items():
        if not target.is_floating_point():  # counters of the norms
            continue
        total += target.numel()
        if key not in learnt:
            continue
        if key in _FIRST_LAYERS:
            copied += _copy_inputs(target, bundle, learnt[key], source)
        elif target.shape == learnt[key].shape and (same_classes or _is_class_free(key)):
            target.copy_(learnt[key])
            copied += target.numel()
    if copied == 0:
        raise ConfigurationError(
            f"expected a refiner in {source.folder} with layers as in this recipe, found none that "
            "fits; give the extractor the same kind and widths, or leave out start_from"
        )
    return copied / total


def _is_class_free(key: str) -> bool:
    return not key.startswith(("extractor.head.", "ensembler."))


def _copy_inputs(target: torch.Tensor, bundle: Bundle, learnt: torch.Tensor, source: Bundle) -> int:
    """Copy the weights of the inputs that mean the same; return how many."""
    if target.shape[0] != learnt.shape[0] or target.shape[2:] != learnt.shape[2:]:
        return 0
    here, there = _columns(bundle), _columns(source)
    same = {"logits"} if bundle.class_names == source.class_names else set()
    if _normalisation(bundle) == _normalisation(source):
        same.add("rgb")
    if _is_same_dense_model(bundle, source):
        same.add("features")
    copied = 0
    for name in same & here.keys() & there.keys():
        part, known = target[:, here[name]], learnt[:, there[name]]
        if part.shape == known.shape:
            part.copy_(known)
            copied += part.numel()
    return copied


def _is_same_dense_model(bundle: Bundle, source: Bundle) -> bool:
    """Whether it is the source's, or that trained on: its features mean about the same then."""
    same = bundle.spec.dense.file.sha256 == source.spec.dense.file.sha256
    return same or bundle.spec.training.get("dense_start") == source.name


def _normalisation(bundle: Bundle) -> Normalisation | None:
    return bundle.spec.refiner.normalisation if bundle.spec.refiner else None


def _columns(bundle: Bundle) -> dict[str, slice]:
    """Where each input lies among the features per pixel."""
    columns, first = {}, 0
    for name, width in bundle.spec.refiner_inputs().items():
        columns[name] = slice(first, first + width)
        first += width
    return columns
