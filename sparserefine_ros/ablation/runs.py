# SPDX-License-Identifier: Apache-2.0
"""What an ablation trains: each distinct setting once, and which rows of which table show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sparserefine_ros.ablation.recipe import AblationRecipe, SelectorKind
from sparserefine_ros.ablation.thresholds import Scores
from sparserefine_ros.bundle import Bundle
from sparserefine_ros.bundle_spec import (
    EntropySelectorSpec,
    ExtractorSpec,
    InputFeature,
    MagnitudeSelectorSpec,
    OracleSelectorSpec,
    RandomSelectorSpec,
)
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.training.recipe import RefinerRecipe

DEFAULT: Final = "default"
_INPUTS: Final[tuple[InputFeature, ...]] = ("rgb", "logits", "features")


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        name: of its folder.
        recipe: what is trained.
        learnable: whether it selects by the trained selector instead of the recipe's.
    """

    name: str
    recipe: RefinerRecipe
    learnable: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        labels: what was chosen, a cell for each of the table's choices.
        run: name of the run whose scores follow.
    """

    labels: tuple[str, ...]
    run: str


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        number: its number there.
        title: what it compares.
        choices: heads of the label columns.
        measures: names of the scores, see `sparserefine_ros.ablation.tables`.
        rows: in the order of the paper.
    """

    number: str
    title: str
    choices: tuple[str, ...]
    measures: tuple[str, ...]
    rows: tuple[Row, ...]


class Ablation:
    """The tables of an ablation and the runs they need.

    Args:
        recipe: the default setting and the choices.
        bundle: the dense model.
        scores: of its pixels, see `sparserefine_ros.ablation.thresholds`.

    Attributes:
        density: of the default setting, share of the picture before the pixel budget.
        tables: 5a to 5e.
        runs: by name; the default setting comes first.

    Raises:
        ConfigurationError: the default setting does not select by entropy, has a pixel budget or
            selects nothing, or the dense model lacks the features that a row needs.
    """

    def __init__(
        self, recipe: AblationRecipe, bundle: Bundle, scores: Mapping[str, Scores]
    ) -> None:
        self.recipe, self.bundle = recipe, bundle
        self._scores = scores
        selector = recipe.refiner.selector or bundle.spec.selector
        if not isinstance(selector, EntropySelectorSpec):
            raise ConfigurationError(
                "expected a refiner that selects by entropy, got "
                f"{selector.kind if selector else 'no selector'}; "
                "set refiner.selector in the recipe"
            )
        if selector.max_pixels:
            raise ConfigurationError(
                "expected a selector without pixel budget, so that tables compare densities, got "
                f"max_pixels: {selector.max_pixels}; set refiner.selector.max_pixels to 0"
            )
        self._selector = selector
        self.density = scores["entropy"].density_at(selector.threshold_nats)
        if self.density == 0.0:
            raise ConfigurationError(
                "expected an entropy threshold that selects some pixels, got "
                f"{selector.threshold_nats} nats, which none exceeds; lower it"
            )
        self._check_features()
        self.runs: dict[str, Run] = {}
        self._add(DEFAULT)
        self.tables = (
            self._selectors(),
            self._densities(),
            self._inputs(),
            self._extractors(),
            self._ensemblers(),
        )

    def _check_features(self) -> None:
        rows = [f"selector {kind}" for kind in self.recipe.selectors if kind == "magnitude"]
        rows += ["inputs " + " + ".join(i) for i in self.recipe.inputs if "features" in i]
        if rows and self.bundle.spec.dense.features is None:
            raise ConfigurationError(
                f"expected dense.features in {self.bundle.name} for {', '.join(rows)}; "
                "name the model's features there, or leave these rows out of the recipe"
            )

    def _add(self, name: str, *, learnable: bool = False, **changes: object) -> str:
        """Name of the run with these changes to the default setting."""
        recipe = self.recipe.refiner.model_copy(update={**changes, "name": name})
        self.runs[name] = Run(name, recipe, learnable)
        return name

    def _selectors(self) -> Table:
        rows = [Row((kind,), self._selector_run(kind)) for kind in self.recipe.selectors]
        measures = ("density", "recall", "precision", "selector_ms", "miou")
        return Table("5a", "Pixel selector", ("Selector",), measures, tuple(rows))

    def _selector_run(self, kind: SelectorKind) -> str:
        name = f"selector-{kind}"
        if kind == "entropy":
            return DEFAULT
        if kind == "learnable":
            return self._add(name, learnable=True, selector=None)
        if kind == "random":
            random = RandomSelectorSpec(kind=kind, density=self.density)
            return self._add(name, selector=random)
        if kind == "magnitude":
            threshold = self._scores[kind].threshold_at(self.density)
            magnitude = MagnitudeSelectorSpec(kind=kind, threshold=threshold)
            return self._add(name, selector=magnitude)
        return self._add(name, selector=OracleSelectorSpec(kind=kind))

    def _densities(self) -> Table:
        runs = {self.density: (DEFAULT, self._selector.threshold_nats)}
        for density in self.recipe.densities:
            nats = self._scores["entropy"].threshold_at(density)
            selector = EntropySelectorSpec(threshold_nats=nats)
            share = self.recipe.refiner.max_train_share * max(1.0, density / self.density)
            name = self._add(
                f"density-{density:g}", selector=selector, max_train_share=min(1.0, share)
            )
            runs[density] = (name, nats)
        rows = [Row((f"{nats:.3f}",), name) for _, (name, nats) in sorted(runs.items())]
        measures = ("density", "recall", "latency_ms", "miou")
        return Table("5b", "Entropy threshold", ("Threshold, nats",), measures, tuple(rows))

    def _inputs(self) -> Table:
        default = self.recipe.refiner.inputs
        choices = {frozenset(inputs): inputs for inputs in (*self.recipe.inputs, default)}
        rows = [
            Row(
                tuple("yes" if name in chosen else "no" for name in _INPUTS),
                DEFAULT
                if chosen == frozenset(default)
                else self._add("inputs-" + "-".join(inputs), inputs=inputs),
            )
            for chosen, inputs in choices.items()
        ]
        return Table("5c", "Input", ("RGB", "Logits", "Features"), ("miou",), tuple(rows))

    def _extractors(self) -> Table:
        default = self.recipe.refiner.extractor
        choices = [*self.recipe.extractors]
        if default not in choices:
            choices.append(default)
        rows = [
            Row(
                (spec.kind, ", ".join(map(str, spec.widths))),
                DEFAULT if spec == default else self._add(_name_of(spec), extractor=spec),
            )
            for spec in choices
        ]
        measures = ("refiner_parameters", "refiner_macs", "latency_ms", "miou")
        return Table("5d", "Extractor", ("Extractor", "Widths"), measures, tuple(rows))

    def _ensemblers(self) -> Table:
        default = self.recipe.refiner.ensembler
        rows = [
            Row((kind,), DEFAULT if kind == default else self._add(name, ensembler=kind))
            for kind in dict.fromkeys((*self.recipe.ensemblers, default))
            for name in [f"ensembler-{kind}"]
        ]
        return Table("5e", "Ensembler", ("Ensembler",), ("miou",), tuple(rows))


def _name_of(spec: ExtractorSpec) -> str:
    blocks = f"-x{spec.blocks}" if spec.kind == "unet" else ""
    bounds = "" if spec.bounds == "image" else f"-{spec.bounds}"
    return f"extractor-{spec.kind}-{'-'.join(map(str, spec.widths))}{blocks}{bounds}"
