# SPDX-License-Identifier: Apache-2.0
"""`sparserefine bundle`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparserefine_ros.cli.options import Commands, open_bundle


def add_bundle(commands: Commands[argparse.ArgumentParser]) -> None:
    """Look after bundles."""
    parser = commands.add_parser("bundle", help="look after model bundles")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="check fields, files and digests, load the models")
    seal = actions.add_parser("seal", help="write the digests of hand-placed files")
    for action, command in ((verify, _verify), (seal, _seal)):
        action.add_argument("bundle", help="bundle folder")
        action.set_defaults(command=command)


def _verify(options: argparse.Namespace) -> None:
    from sparserefine_ros.pipeline import Pipeline

    bundle = open_bundle(options)
    pipeline = Pipeline(bundle)
    print(f"{bundle.name}: {len(bundle.class_names)} classes, digest {bundle.digest}")
    for stage, description in pipeline.backends.items():
        print(f"  {stage}: {description}")


def _seal(options: argparse.Namespace) -> None:
    from sparserefine_ros.bundle import seal_bundle

    bundle = seal_bundle(Path(options.bundle))
    print(f"{bundle.name}: sealed, digest {bundle.digest}")
