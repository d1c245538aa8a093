# SPDX-License-Identifier: Apache-2.0
"""Ablation recipes: what `sparserefine ablate` reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sparserefine_ros.bundle_spec import EnsemblerKind, ExtractorSpec, Inputs
from sparserefine_ros.configuration import Record
from sparserefine_ros.training.recipe import RefinerRecipe, Schedule, Share

SelectorKind = Literal["random", "magnitude", "learnable", "entropy", "oracle"]


class AblationRecipe(Record):
    """One default setting and the choices it is held against, one at a time.

    The defaults of the choices are those of the paper; a choice that a table leaves out is not
    trained.

    Attributes:
        refiner: the default setting; its selector must be the entropy.
        evaluate_on: data set (its val split) of the tables.
        dense_full: bundle whose dense model was trained at full resolution, for table 8.
        limit: frames to evaluate; 0 for all.
        selectors: rows of table 5a, all at the density of the default setting but the oracle.
        selector_schedule: of the learnable selector; left out, it is the refiner's.
        densities: rows of table 5b, beside the default setting.
        inputs: rows of table 5c.
        extractors: rows of table 5d.
        ensemblers: rows of table 5e.
    """

    refiner: RefinerRecipe
    evaluate_on: str
    dense_full: str | None = None
    limit: Annotated[int, Field(ge=0)] = 0
    selectors: tuple[SelectorKind, ...] = ("random", "magnitude", "learnable", "entropy", "oracle")
    selector_schedule: Schedule | None = None
    densities: tuple[Share, ...] = (0.034, 0.069, 0.19, 1.0)
    inputs: tuple[Inputs, ...] = (
        ("rgb",),
        ("rgb", "logits"),
        ("rgb", "features"),
        ("rgb", "logits", "features"),
    )
    extractors: tuple[ExtractorSpec, ...] = ()
    ensemblers: tuple[EnsemblerKind, ...] = ("direct", "entropy", "gated", "oracle")
