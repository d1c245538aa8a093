# SPDX-License-Identifier: Apache-2.0
"""`sparserefine export` and `zoo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sparserefine_ros.cli.options import DEFAULT_BUNDLE, Commands, open_bundle

if TYPE_CHECKING:
    from sparserefine_ros.bundle_spec import ClassSpec
    from sparserefine_ros.zoo.network import DenseNetwork

_UNKNOWN_LICENCE = "that of the weights; not recorded"


def add_export(commands: Commands[argparse.ArgumentParser]) -> None:
    """A dense network, trained elsewhere, as a bundle."""
    parser = commands.add_parser("export", help="write a dense network as a bundle")
    parser.add_argument(
        "network", help="name of a network (see `sparserefine zoo list`), or Hugging Face folder"
    )
    parser.add_argument(
        "--classes",
        help="number, data set name, dataset.yaml, or text file with a name on each line; "
        "default: those of the Hugging Face folder",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="MMSegmentation .pth file of a network by name; default: random weights",
    )
    parser.add_argument(
        "--scale", type=float, default=0.5, help="low resolution / full resolution (0.5)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="fixed input size instead"
    )
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--licence", default=_UNKNOWN_LICENCE, help="of the weights, in words")
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> None:
    from sparserefine_ros.zoo.dense_bundle import ExportOptions, export_bundle

    network, classes, origin = _network(options)
    how = ExportOptions(
        scale=options.scale,
        size=tuple(options.size) if options.size else None,
        precision=options.precision,
    )
    bundle = export_bundle(
        network, classes, options.out, how, licence=options.licence, origin=origin
    )
    print(f"bundle {bundle.name} at {bundle.folder}, {len(classes)} classes, {origin}")
    print(f"try it: sparserefine run street --bundle {bundle.folder}")


def _network(options: argparse.Namespace) -> tuple[DenseNetwork, tuple[ClassSpec, ...], str]:
    """The network, its classes, and where its weights come from."""
    from sparserefine_ros.errors import ConfigurationError
    from sparserefine_ros.zoo.checkpoints.mmseg import load_mmseg
    from sparserefine_ros.zoo.classes import read_classes
    from sparserefine_ros.zoo.models import MODELS, build_model

    name, checkpoint = options.network, options.checkpoint
    classes = read_classes(options.classes) if options.classes else None
    if name not in MODELS:
        folder = Path(name)
        if checkpoint is not None or not folder.is_dir():
            raise ConfigurationError(
                f"expected a network of {', '.join(MODELS)}, or a Hugging Face folder alone, "
                f"got {name!r}{f' and --checkpoint {checkpoint}' if checkpoint else ''}"
            )
        return _hub_network(folder, classes)
    if checkpoint is not None and checkpoint.is_dir():
        raise ConfigurationError(
            f"expected a checkpoint file for {name}, got the folder {checkpoint}; a Hugging Face "
            f"folder says itself what network it holds: sparserefine export {checkpoint} --out ..."
        )
    if classes is None:
        raise ConfigurationError("expected --classes for a network by name")
    if checkpoint is not None:
        network = load_mmseg(name, len(classes), checkpoint)
        return network, classes, f"{name}, checkpoint {checkpoint.name}"
    return build_model(name, len(classes)), classes, f"{name}, random"


def _hub_network(
    folder: Path, classes: tuple[ClassSpec, ...] | None
) -> tuple[DenseNetwork, tuple[ClassSpec, ...], str]:
    from sparserefine_ros.errors import ConfigurationError
    from sparserefine_ros.zoo.checkpoints.hub import load_hub_folder
    from sparserefine_ros.zoo.classes import name_classes

    model = load_hub_folder(folder)
    classes = classes or name_classes(model.class_names)
    if len(classes) != len(model.class_names):
        raise ConfigurationError(
            f"{folder} has {len(model.class_names)} classes, --classes {len(classes)}; "
            "leave --classes out, or correct it"
        )
    return model.network, classes, f"Hugging Face folder {folder.name}"


def add_zoo(commands: Commands[argparse.ArgumentParser]) -> None:
    """The dense networks of this package."""
    parser = commands.add_parser("zoo", help="the dense networks of this package")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    names = actions.add_parser("list", help="names for `sparserefine export`")
    names.set_defaults(command=_list)
    table = actions.add_parser(
        "table", help="parameters and MACs beside those of the paper's table 1"
    )
    table.add_argument("--models", nargs="+", metavar="NAME", help="some of the five")
    table.add_argument(
        "--density", type=float, default=0.118, help="share of the picture that is refined (0.118)"
    )
    table.add_argument("--bundle", default=DEFAULT_BUNDLE, help="whose dense model draws the mask")
    table.add_argument(
        "--bench", type=Path, nargs="+", default=[], metavar="JSON",
        help="latencies: `sparserefine bench pipeline --json` of bundles named MODEL-full, "
        "MODEL-low, MODEL-refined",
    )  # fmt: skip
    table.add_argument("--json", type=Path, help="write the table to this file")
    table.set_defaults(command=_table)


def _list(options: argparse.Namespace) -> None:
    from sparserefine_ros.zoo.models import MODELS

    print("\n".join(MODELS))


def _table(options: argparse.Namespace) -> None:
    from sparserefine_ros.zoo.paper import PAPER
    from sparserefine_ros.zoo.table import make_table

    table = make_table(
        open_bundle(options),
        density=options.density,
        models=options.models or tuple(PAPER),
        bench=options.bench,
    )
    print(table.to_text(), end="")
    if options.json:
        table.write_json(options.json)
        print(f"table written to {options.json}")
