# SPDX-License-Identifier: Apache-2.0
"""A foreign dense model, data and recipes for the training of refiners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from conftest import write_pointwise_onnx

from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.bundle_spec import EntropySelectorSpec, UNetSpec
from sparserefine_ros.data.street import CLASS_NAMES, StreetScene
from sparserefine_ros.training.recipe import AugmentationRecipe, DataSource, RefinerRecipe, Schedule

CLASSES = len(CLASS_NAMES)
THRESHOLD = 1.2
WEIGHT = np.random.default_rng(5).normal(0, 1.5, (CLASSES, 3)).astype(np.float32)
BIAS = np.random.default_rng(6).normal(0, 0.5, CLASSES).astype(np.float32)
MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])


def write_camvid(root: Path) -> str:
    """Four street scenes in CamVid's layout, as text form of a data set."""
    for split, seeds in (("train", (1, 2)), ("val", (3, 4))):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for seed in seeds:
            frame = StreetScene(seed).render(0.0, height=48, width=64)
            cv2.imwrite(str(root / split / "images" / f"{seed}.jpg"), frame.image[:, :, ::-1])
            cv2.imwrite(str(root / split / "labels" / f"{seed}.png"), frame.labels)
    return f"camvid:{root}"


def hand_written(folder: Path, *, scale: float, names: tuple[str, ...] = CLASS_NAMES) -> Bundle:
    write_pointwise_onnx(folder / "foreign.onnx", WEIGHT, BIAS)
    fields = {
        "name": "foreign",
        "licence": "theirs",
        "classes": [{"name": name, "colour": [i, 0, 0]} for i, name in enumerate(names)],
        "dense": {"file": {"path": "foreign.onnx"}, "input": {"scale": scale}},
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return seal_bundle(folder)


def make_recipe(data: str, **changes: Any) -> RefinerRecipe:
    fields: dict[str, Any] = {
        "name": "refined",
        "train": (DataSource(data=data, repeat=4),),
        "validate_on": data,
        "selector": EntropySelectorSpec(threshold_nats=THRESHOLD),
        "extractor": UNetSpec(widths=(8, 12), blocks=1),
        "schedule": make_schedule(),
        "augmentation": AugmentationRecipe(crop=(36, 50), scale=(0.8, 1.25)),
    }
    return RefinerRecipe(**{**fields, **changes})


def make_schedule(**changes: Any) -> Schedule:
    fields = {"epochs": 6, "batch_size": 2, "learning_rate": 0.01, "validate_every": 6}
    return Schedule(**{"workers": 0, "weight_decay": 0.0, **fields, **changes})
