# SPDX-License-Identifier: Apache-2.0
"""`sparserefine`: run pictures, view results, train, evaluate, and more; see its `--help`.

Each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sparserefine_ros.cli.bag import add_bag
from sparserefine_ros.cli.bench import add_bench
from sparserefine_ros.cli.bundle import add_bundle
from sparserefine_ros.cli.engine import add_engine
from sparserefine_ros.cli.evaluate import add_evaluate
from sparserefine_ros.cli.run import add_demo, add_run
from sparserefine_ros.cli.train import add_ablate, add_train
from sparserefine_ros.cli.view import add_view
from sparserefine_ros.cli.zoo import add_export, add_zoo
from sparserefine_ros.errors import SparseRefineError
from sparserefine_ros.openmp import spin_briefly

_COMMANDS = (
    add_run,
    add_view,
    add_demo,
    add_train,
    add_ablate,
    add_evaluate,
    add_bag,
    add_bench,
    add_bundle,
    add_engine,
    add_export,
    add_zoo,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 its output is not read.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    spin_briefly()
    options = _parser().parse_args(arguments)
    try:
        code = int(options.command(options) or 0)
        sys.stdout.flush()
    except SparseRefineError as err:
        print(f"sparserefine: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sparserefine: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # What is still buffered must go somewhere, or Python complains when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as err:
        if err.filename is None:
            raise
        print(f"sparserefine: cannot use {err.filename}: {err.strerror}", file=sys.stderr)
        return 1
    return code


class _Version(argparse.Action):
    """Looks for the installed version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        try:
            version = importlib.metadata.version("sparserefine_ros")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"sparserefine_ros {version}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparserefine", description="Semantic segmentation by sparse refinement."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser
