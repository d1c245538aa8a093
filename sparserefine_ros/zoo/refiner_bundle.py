# SPDX-License-Identifier: Apache-2.0
"""A released refiner into a bundle with its dense model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from sparserefine_ros.bundle import Bundle, create_bundle
from sparserefine_ros.bundle_spec import EntropySelectorSpec, FileSpec
from sparserefine_ros.weights import save_weights
from sparserefine_ros.zoo.checkpoints.released import load_released_refiner

_REFINER_FILE: Final = "refiner.safetensors"


def add_released_refiner(
    bundle: Bundle, checkpoint: Path, folder: Path, *, threshold_nats: float
) -> Bundle:
    """Write a bundle of a dense model and a refiner that was trained on its logits.

    A refiner that the bundle has is replaced.

    Args:
        bundle: has the dense model.
        checkpoint: a `.ckpt` file of the SparseRefine release.
        folder: of the new bundle, whose name is the bundle's; may be that of `bundle`.
        threshold_nats: pixels whose entropy is above it are refined.

    Raises:
        CheckpointError: the checkpoint is unreadable or has other classes.
        BundleError: the threshold is impossible, or `folder` holds something else than a bundle.
    """
    classes = len(bundle.class_names)
    file = FileSpec(path=_REFINER_FILE)
    refiner, refiner_spec = load_released_refiner(checkpoint, classes, file=file)
    is_new = folder.resolve() != bundle.folder.resolve()
    spec = bundle.spec.model_copy(
        update={
            "name": folder.resolve().name if is_new else bundle.name,
            "refiner": refiner_spec,
            "selector": EntropySelectorSpec(threshold_nats=threshold_nats),
            "training": {**bundle.spec.training, "refiner_weights": checkpoint.name},
        }
    )
    dense = bundle.spec.dense.file
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / _REFINER_FILE
        save_weights(refiner, weights)
        return create_bundle(folder, spec, {dense.path: bundle.path(dense), file.path: weights})
