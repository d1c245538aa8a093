# SPDX-License-Identifier: Apache-2.0
"""`sparserefine`: run pictures, view results, train, evaluate, and more; see its `--help`.

Each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

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
    """Run one command; return its exit code: 0 done, 1 failed, 2 wrong usage."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    spin_briefly()
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except SparseRefineError as err:
        print(f"sparserefine: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparserefine", description="Semantic segmentation by sparse refinement."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser
