# SPDX-License-Identifier: Apache-2.0
"""Several bags: one after the other or at the same time, their sum, and what may not be joined."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from bags.conftest import tiny_bag
from tiny_data import TinyData

from sparserefine_ros.bags import batch as batch_module
from sparserefine_ros.bags.batch import Job, evaluate_bags, summarise
from sparserefine_ros.bags.results import BagOptions
from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import BagError, ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation.evaluate import evaluate
from sparserefine_ros.evaluation.subset import Subset
from sparserefine_ros.pipeline import PipelineOptions

HOW = PipelineOptions(threads=1)
LABELLED = BagOptions(label_topic="/truth")


def test_several_bags_and_their_sum(bundle: Bundle, tmp_path: Path) -> None:
    bags = [tiny_bag(tmp_path / "a", 2), tiny_bag(tmp_path / "b", 3, first=2)]
    out = tmp_path / "out"
    options = replace(LABELLED, maps=False, pictures=0)
    folders = evaluate_bags(bags, out, bundle, HOW, options, jobs=2)
    assert folders == [out / "a", out / "b"]
    total = summarise(folders, out)
    whole = evaluate(bundle, TinyData(5), HOW)
    assert total.totals(total.final).mean_iou == whole.totals(whole.final).mean_iou
    summary = json.loads((out / "summary.json").read_text())
    assert [row["frames"] for row in summary["bags"]] == [2, 3]
    assert summary["scores"]["frames"] == 5


def test_impossible_requests(bag: Path, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected 1 job or more, got 0"):
        evaluate_bags([bag], tmp_path, bundle, HOW, LABELLED, jobs=0)
    with pytest.raises(ConfigurationError, match="got drive twice"):
        evaluate_bags([bag, bag], tmp_path, bundle, HOW, LABELLED)
    folder = BagOptions(label_folder=tmp_path)
    with pytest.raises(ConfigurationError, match="expected one bag with a folder of labels"):
        evaluate_bags([bag, tmp_path], tmp_path, bundle, HOW, folder)
    with pytest.raises(ConfigurationError, match="got both"):
        BagOptions(label_topic="/truth", label_folder=tmp_path)
    with pytest.raises(ConfigurationError, match="expected 0 or more pictures, got -1"):
        BagOptions(pictures=-1)
    with pytest.raises(ConfigurationError, match="expected 0 or more streams, got -1"):
        BagOptions(streams=-1)
    with pytest.raises(BagError, match="expected the results of a bag in"):
        summarise([tmp_path], tmp_path)


def test_results_that_are_given_twice(bundle: Bundle, tmp_path: Path) -> None:
    bags = [tiny_bag(tmp_path / "a", 1), tiny_bag(tmp_path / "b", 1)]
    one, other = evaluate_bags(bags, tmp_path / "out", bundle, HOW, replace(LABELLED, maps=False))
    link, copy = tmp_path / "link", tmp_path / "copy"
    link.symlink_to(one)
    shutil.copytree(one, copy)
    for again in (one, link, one / ".." / "a", copy):
        with pytest.raises(
            ConfigurationError, match=rf"expected each bag once, .* in {one} and {again}; leave"
        ):
            summarise([one, other, again], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
    # The same pictures under another name are another bag.
    summarise([one, other], tmp_path / "sum")


def test_parts_of_a_bag_are_joined_otherwise(bag: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Their frames are of one bag, which would count twice."""
    part = replace(LABELLED, maps=False, pictures=0, subset=Subset(0, 1, 2))
    (folder,) = evaluate_bags([bag], tmp_path / "part", bundle, HOW, part)
    with pytest.raises(ConfigurationError, match=r"is part 1/2 of its bag; .* evaluate --merge"):
        summarise([folder], tmp_path / "all")
    with pytest.raises(ConfigurationError, match="expected one bag to take a part of"):
        evaluate_bags([bag, tmp_path / "other"], tmp_path / "o", bundle, HOW, part)


def test_a_bag_that_fails_stops_those_that_have_not_begun(bundle: Bundle, tmp_path: Path) -> None:
    missing = tmp_path / "a"
    bags = [missing, *(tiny_bag(tmp_path / name, 1) for name in "bcde")]
    with pytest.raises(BagError, match=f"there is no file or folder {missing}"):
        evaluate_bags(bags, tmp_path / "out", bundle, HOW, LABELLED, jobs=2)
    # One more may have begun at the same time, and is kept.
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {"b"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, BagError])
def test_an_interruption_is_known_before_the_next_job(
    error: type[BaseException], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []

    def run(job: Job) -> Path:
        begun.append(job.bag)
        raise error

    monkeypatch.setattr(batch_module, "run_job", run)
    monkeypatch.setattr(batch_module, "_stopped", threading.Event())
    jobs = [Job(tmp_path / name, tmp_path, bundle, HOW, LABELLED) for name in "ab"]
    with pytest.raises(error):
        batch_module._run_unless_stopped(jobs[0])
    with pytest.raises(SparseRefineError, match="/b was not begun, for an earlier bag failed"):
        batch_module._run_unless_stopped(jobs[1])
    assert begun == [tmp_path / "a"]
