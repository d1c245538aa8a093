# SPDX-License-Identifier: Apache-2.0
"""`sparserefine bundle`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparserefine_ros.cli.options import Commands, open_bundle

# Sizes (H, W) that a bundle is tried with: one that suits almost any network, and one that only
# those can take that take any, or that the bundle describes well.
_SIZES = ((256, 512), (250, 494))


def add_bundle(commands: Commands[argparse.ArgumentParser]) -> None:
    """Look after bundles."""
    parser = commands.add_parser("bundle", help="verify, seal and extend model bundles")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="check fields, files and digests, run the models")
    seal = actions.add_parser("seal", help="write the digests of hand-placed files")
    for action, command in ((verify, _verify), (seal, _seal)):
        action.add_argument("bundle", help="bundle folder")
        action.set_defaults(command=command)
    add = actions.add_parser("add-refiner", help="add a refiner of the SparseRefine release")
    add.add_argument("bundle", help="bundle with the dense model the refiner was trained for")
    add.add_argument("checkpoint", type=Path, help="Lightning checkpoint, .ckpt")
    add.add_argument(
        "--entropy-threshold", type=float, required=True,
        help="nats; the paper's: HRNet-W48 0.3, SegFormer-B5 0.1, Mask2Former-T 0.05, "
        "Mask2Former-L 0.005, SegNeXt-L 0.1",
    )  # fmt: skip
    add.add_argument("--out", type=Path, help="folder of the new bundle; default: replace it")
    add.set_defaults(command=_add_refiner)


def _verify(options: argparse.Namespace) -> None:
    import numpy as np

    from sparserefine_ros.pipeline import Pipeline

    bundle = open_bundle(options)
    pipeline = Pipeline(bundle)
    # What a model returns is known only when it has run.
    for size in _SIZES:
        picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        truth = np.zeros(size, np.uint8) if bundle.spec.uses_truth() else None
        pipeline(picture, truth=truth)
    print(f"{bundle.name}: {len(bundle.class_names)} classes, digest {bundle.digest}")
    print(f"  licence: {bundle.spec.licence}")
    for stage, description in pipeline.backends.items():
        print(f"  {stage}: {description}")


def _seal(options: argparse.Namespace) -> None:
    from sparserefine_ros.bundle import seal_bundle
    from sparserefine_ros.dense.onnx_file import dense_model_file

    bundle = seal_bundle(Path(options.bundle))
    dense_model_file(bundle)  # of weights in a second file there would be no digest
    print(
        f"{bundle.name}: sealed, digest {bundle.digest}; see whether it runs: "
        f"sparserefine bundle verify {options.bundle}"
    )


def _add_refiner(options: argparse.Namespace) -> None:
    from sparserefine_ros.zoo.refiner_bundle import add_released_refiner

    bundle = open_bundle(options)
    new = add_released_refiner(
        bundle,
        options.checkpoint,
        options.out or bundle.folder,
        threshold_nats=options.entropy_threshold,
    )
    print(f"{new.name}: with refiner at {new.folder}, digest {new.digest}")
