# SPDX-License-Identifier: Apache-2.0
"""Table 1 of the paper, counted on the networks of this package, beside the paper's figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.evaluation.sparse_cases import SIZE, street_mask
from sparserefine_ros.files import write_text_whole
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.zoo.costs import Cost, count_networks, count_reference_refiner
from sparserefine_ros.zoo.paper import (
    CLASSES,
    FULL_SIZE,
    PAPER,
    REFINER_NOTE,
    PaperModel,
    PaperRow,
)

_MEGA: Final = 1e6
_TERA: Final = 1e12
_UNEXPLAINED: Final = "Not explained."
_INPUTS: Final = ("full", "low", "refined")


@dataclass(frozen=True)
class Figure:
    """A count and the paper's.

    Attributes:
        counted: here.
        paper: there.
        rounding: half of the paper's last digit.
        notes: why they differ; empty where they agree to the paper's last digit.
    """

    counted: float
    paper: float
    rounding: float
    notes: tuple[str, ...]

    @property
    def deviation_percent(self) -> float:
        """Of the count from the paper's figure."""
        return 100.0 * (self.counted / self.paper - 1.0)


@dataclass(frozen=True)
class TableRow:
    """A model at one input.

    Attributes:
        model: its name here.
        input: "full", "low" or "refined".
        size: input size of the dense model, (h, w).
        parameters: in millions.
        macs: in 10^12.
        latency_ms: measured; None where there is no measurement.
        paper_latency_ms: on an RTX 3090.
    """

    model: str
    input: str
    size: tuple[int, int]
    parameters: Figure
    macs: Figure
    latency_ms: float | None
    paper_latency_ms: float


@dataclass(frozen=True)
class ZooTable:
    """The table.

    Attributes:
        density: share of the picture that is refined, 0 .. 1.
        neighbours: active sites that the 3x3 window of one holds on average, itself included.
        refiner_macs: of each model's refiner, in 10^12.
        latencies_from: where the latencies were measured; empty without any.
        rows: three for each model.
    """

    density: float
    neighbours: float
    refiner_macs: dict[str, float]
    latencies_from: str
    rows: tuple[TableRow, ...]

    def to_text(self) -> str:
        """For people, with footnotes."""
        return "\n".join(_lines(self)) + "\n"

    def write_json(self, path: Path) -> None:
        """Write everything as JSON.

        Raises:
            SparseRefineError: the file cannot be written.
        """
        write_text_whole(path, json.dumps(asdict(self), indent=2) + "\n")


def make_table(
    bundle: Bundle,
    *,
    density: float,
    models: Sequence[str] = tuple(PAPER),
    bench: Sequence[Path] = (),
) -> ZooTable:
    """Count the models of table 1 at both resolutions, and with the reference refiner.

    Args:
        bundle: its dense model draws the mask: where it is least sure of a procedural street.
        density: share of the picture that is refined.
        models: names, of `PAPER`.
        bench: JSON files of `sparserefine bench pipeline` on bundles named MODEL-full, MODEL-low
            and MODEL-refined, at 2048 x 1024.

    Raises:
        ConfigurationError: no such model, an impossible density, or an unreadable file.
        BackendError: a network needs a package that is not installed.
    """
    unknown = [name for name in models if name not in PAPER]
    if unknown:
        raise ConfigurationError(f"expected models of {', '.join(PAPER)}, got {unknown[0]!r}")
    if not 0.0 < density <= 1.0:
        raise ConfigurationError(f"expected a density above 0, at most 1, got {density}")
    latencies: dict[str, float] = {}
    machines: list[str] = []
    for path in bench:
        found, machine = _read_bench(path)
        latencies |= found
        machines += [machine] if machine not in machines else []
    sites = street_mask(bundle, density, SIZE, threads=0).pixels
    rows: list[TableRow] = []
    refiner_macs = {}
    for name in models:
        paper = PAPER[name]
        plan = build_plan(sites, (1, *SIZE), len(paper.widths), bounds="data")
        refiner = count_reference_refiner(paper.widths, plan, classes=CLASSES)
        refiner_macs[name] = refiner.macs / _TERA
        costs = count_networks(name, (FULL_SIZE, paper.low_size), classes=CLASSES)
        rows += _model_rows(name, paper, costs, refiner, latencies)
    return ZooTable(
        len(sites) / (SIZE[0] * SIZE[1]), _neighbours(sites), refiner_macs, "; ".join(machines),
        tuple(rows),
    )  # fmt: skip


def _neighbours(sites: Tensor) -> float:
    finest = build_plan(sites, (1, *SIZE), 1).levels[0]
    return finest.same.pairs() / finest.count


def _model_rows(
    name: str,
    paper: PaperModel,
    costs: Mapping[tuple[int, int], Cost],
    refiner: Cost,
    latencies: Mapping[str, float],
) -> Iterable[TableRow]:
    full, low = costs[FULL_SIZE], costs[paper.low_size]
    refined = Cost(low.parameters + refiner.parameters, low.macs + refiner.macs)
    for where, size, cost, printed in (
        ("full", FULL_SIZE, full, paper.full),
        ("low", paper.low_size, low, paper.low),
        ("refined", paper.low_size, refined, paper.refined),
    ):
        yield TableRow(
            name, where, size, *_figures(paper, where, cost, printed),
            latencies.get(f"{name}-{where}"), printed.latency_ms,
        )  # fmt: skip


def _figures(paper: PaperModel, where: str, cost: Cost, printed: PaperRow) -> tuple[Figure, Figure]:
    mac_notes = (paper.mac_note, REFINER_NOTE if where == "refined" else "")
    return (
        _figure(cost.parameters / _MEGA, printed.parameters, 0.05, [paper.parameter_note]),
        _figure(cost.macs / _TERA, printed.macs, 0.005, mac_notes),
    )


def _figure(counted: float, printed: float, rounding: float, notes: Iterable[str]) -> Figure:
    agrees = abs(counted - printed) <= rounding
    given = tuple(filter(None, notes)) or (_UNEXPLAINED,)
    return Figure(counted, printed, rounding, () if agrees else given)


def _read_bench(path: Path) -> tuple[dict[str, float], str]:
    """Median total of each benchmark at full size by the name of its bundle, and the machine."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        found = {
            figure["bundle"]: float(figure["rows"]["total"]["median"])
            for figure in figures
            if (figure["height"], figure["width"]) == FULL_SIZE
        }
        machine = str(figures[0]["machine"]) if figures else ""
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigurationError(
            f"expected a JSON file of `sparserefine bench pipeline`, got {path}: {err!r}"
        ) from err
    known = {f"{name}-{where}" for name in PAPER for where in _INPUTS}
    if not found.keys() & known:
        raise ConfigurationError(
            f"{path}: expected bundles named MODEL-full, MODEL-low or MODEL-refined at 2048 x 1024 "
            f"with a MODEL of {', '.join(PAPER)}; got {', '.join(sorted(found)) or 'none'}"
        )
    return found, machine


def _lines(table: ZooTable) -> Iterable[str]:
    notes: list[str] = []
    yield f"{'':<36}{'parameters, M':>26}{'MACs, T':>27}{'latency, ms':>20}"
    yield (
        f"{'model, input of the dense model':<36}{'counted':>9}{'paper':>8}{'dev. %':>9}    "
        f"{'counted':>9}{'paper':>7}{'dev. %':>9}    {'here':>8}{'paper':>8}"
    )
    for row in table.rows:
        height, width = row.size
        title = f"{PAPER[row.model].title}, {row.input} {height}x{width}"
        latency = "-" if row.latency_ms is None else f"{row.latency_ms:.1f}"
        yield (
            f"{title:<36}{row.parameters.counted:9.1f}{row.parameters.paper:8.1f}"
            f"{_deviation(row.parameters, notes):>13}{row.macs.counted:9.3f}{row.macs.paper:7.2f}"
            f"{_deviation(row.macs, notes):>13}{latency:>8}{row.paper_latency_ms:8.1f}"
        )
    yield ""
    refiners = ", ".join(
        f"{PAPER[name].title} {macs:.3f} T" for name, macs in table.refiner_macs.items()
    )
    yield (
        f"Refined: {table.density:.1%} of {SIZE[0]}x{SIZE[1]}, {table.neighbours:.1f} of 9 sites "
        "active around each."
    )
    yield f"MACs of the refiner: {refiners}."
    yield "The paper's latencies: RTX 3090, fp16, batch 4."
    if table.latencies_from:
        yield f"Latencies here: {table.latencies_from}."
    yield "Deviations without a number are within the rounding of the paper's figure."
    for number, note in enumerate(notes, start=1):
        yield f"[{number}] {note}"


def _deviation(figure: Figure, notes: list[str]) -> str:
    """The deviation with the numbers of its footnotes, which join `notes` when they are new."""
    notes += [note for note in figure.notes if note not in notes]
    numbers = ",".join(str(1 + notes.index(note)) for note in figure.notes)
    marks = f" [{numbers}]" if numbers else ""
    return f"{figure.deviation_percent:+.1f}{marks:<6}"
