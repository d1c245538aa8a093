# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.cli import main
from sparserefine_ros.evaluation.sparse_cases import SIZE, street_mask
from sparserefine_ros.sparse.plan import build_plan
from sparserefine_ros.zoo.costs import count_reference_refiner
from sparserefine_ros.zoo.paper import FIVE_LEVELS, PAPER, SIX_LEVELS


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """HRNet alone: the others take longer, and transformers."""
    folder = tmp_path_factory.mktemp("table")
    bench = folder / "bench.json"
    figures = [
        {"bundle": "hrnet-w48-low", "width": 2048, "height": 1024, "machine": "a GPU",
         "rows": {"total": {"median": 12.5}}},
        {"bundle": "hrnet-w48-full", "width": 480, "height": 360, "machine": "a GPU",
         "rows": {"total": {"median": 99.0}}},
    ]  # fmt: skip
    bench.write_text(json.dumps(figures))
    path = folder / "new" / "table.json"
    arguments = ["zoo", "table", "--models", "hrnet-w48", "--bench", str(bench)]
    assert main([*arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_rows(table: dict[str, Any]) -> None:
    full, low, refined = table["rows"]
    assert [row["input"] for row in table["rows"]] == ["full", "low", "refined"]
    assert full["parameters"]["counted"] == low["parameters"]["counted"]
    # Convolutions only: a quarter of the pixels, a quarter of the work.
    assert low["macs"]["counted"] == pytest.approx(full["macs"]["counted"] / 4, rel=1e-6)
    added = table["refiner_macs"]["hrnet-w48"]
    assert refined["macs"]["counted"] == pytest.approx(low["macs"]["counted"] + added)
    assert 0.1 < added < 0.3
    assert refined["parameters"]["counted"] == pytest.approx(145.2, abs=0.05)
    assert 4 < table["neighbours"] < 9
    assert table["density"] == pytest.approx(0.118, abs=0.001)


def test_a_note_where_a_figure_is_not_the_papers(table: dict[str, Any]) -> None:
    for row in table["rows"]:
        for figure in (row["parameters"], row["macs"]):
            agrees = abs(figure["counted"] - figure["paper"]) <= figure["rounding"]
            assert bool(figure["notes"]) != agrees


def test_latencies_only_where_measured_at_full_size(table: dict[str, Any]) -> None:
    assert [row["latency_ms"] for row in table["rows"]] == [None, 12.5, None]
    assert table["latencies_from"] == "a GPU"


def test_density_and_levels_change_the_refiners_macs() -> None:
    bundle = Bundle.named("street_small")
    macs = []
    for density, widths in ((0.034, SIX_LEVELS), (0.118, SIX_LEVELS), (0.118, FIVE_LEVELS)):
        plan = build_plan(street_mask(bundle, density, SIZE, 1).pixels, (1, *SIZE), len(widths))
        cost = count_reference_refiner(widths, plan, classes=19)
        macs.append(cost.macs)
    # Reference figures: 79.33 and 19.81 M before head and gate.
    assert cost.parameters == pytest.approx(19.81e6, rel=1e-3)
    assert macs[0] < macs[2] < macs[1]


def test_the_papers_rows_add_up() -> None:
    """Refined is the dense model and the refiner: 79.3 M with six levels, 19.8 M with five."""
    for model in PAPER.values():
        refiner = {SIX_LEVELS: 79.3, FIVE_LEVELS: 19.8}[model.widths]
        assert model.refined.parameters == pytest.approx(model.low.parameters + refiner, abs=0.11)
        assert model.full.parameters == model.low.parameters
        assert model.low.macs < model.refined.macs < model.full.macs


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--models", "resnet"], "expected models of hrnet-w48, "),
        (["--density", "0"], "expected a density above 0"),
        (["--bench", "no.json"], "expected a JSON file of `sparserefine bench pipeline`"),
    ],
)
def test_mistakes(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "table", *arguments]) == 1
    assert text in capsys.readouterr().err


def test_a_bench_of_other_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps([{
        "bundle": "street_small", "width": 2048, "height": 1024, "machine": "m",
        "rows": {"total": {"median": 1.0}},
    }]))  # fmt: skip
    assert main(["zoo", "table", "--bench", str(path)]) == 1
    assert "MODEL-refined at 2048 x 1024" in capsys.readouterr().err
