# SPDX-License-Identifier: Apache-2.0
"""Bags evaluated one by one or several at once, each into a folder of its own, and their sum."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

import cv2

from sparserefine_ros.bags.evaluate import evaluate_bag, share_cores
from sparserefine_ros.bags.report import METRICS, SCORES, no_results, write_results
from sparserefine_ros.bags.results import BagOptions
from sparserefine_ros.bags.staging import whole_folder
from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import BagError, ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.storage import read_json, scores_to_json
from sparserefine_ros.files import write_text_whole
from sparserefine_ros.pipeline import PipelineOptions

SUMMARY: Final = "summary.json"


@dataclass(frozen=True)
class Job:
    """One bag and where its results go; it can be sent to another process."""

    bag: Path
    out: Path
    bundle: Bundle
    how: PipelineOptions
    options: BagOptions


def run_job(job: Job) -> Path:
    """Evaluate a bag; its folder of results appears when it is whole.

    Raises:
        SparseRefineError: bag or bundle cannot be used, or the folder cannot be written.
    """
    with whole_folder(job.out, obstacle=no_results) as folder:
        result = evaluate_bag(job.bag, job.bundle, job.how, job.options, folder)
        write_results(result, job.bundle, folder)
    return job.out


def evaluate_bags(
    bags: Sequence[Path],
    out: Path,
    bundle: Bundle,
    how: PipelineOptions,
    options: BagOptions,
    *,
    jobs: int = 1,
) -> list[Path]:
    """Evaluate bags, one into `out`, several into a folder each below it.

    Args:
        bags: at least one.
        out: folder for the results.
        bundle: what is run.
        how: its engine options; 0 threads divide the cores among jobs and streams.
        options: what of each bag is evaluated.
        jobs: bags evaluated at the same time.

    Returns:
        the folders of results, in the order of the bags.

    Raises:
        ConfigurationError: fewer than one job, two bags of one name, or one folder of labels, or a
            part, for several bags.
        SparseRefineError: a bag cannot be evaluated; those done before it are kept.
    """
    if jobs < 1:
        raise ConfigurationError(f"expected 1 job or more, got {jobs}")
    names = [bag.resolve().name for bag in bags]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigurationError(
            f"expected bags of different names, for each gets a folder of its own, got {twice[0]} "
            "twice; evaluate them into different folders and join them with sparserefine bag merge"
        )
    if len(bags) > 1 and options.label_folder is not None:
        raise ConfigurationError(
            "expected one bag with a folder of labels, got several; evaluate them one by one"
        )
    if len(bags) > 1 and options.subset.shards > 1:
        raise ConfigurationError(
            "expected one bag to take a part of, got several; share out the bags instead"
        )
    jobs = min(jobs, len(bags))
    how, streams = share_cores(how, options.streams, jobs)
    options = replace(options, streams=streams)
    folders = [out] if len(bags) == 1 else [out / name for name in names]
    work = [
        Job(bag, folder, bundle, how, options) for bag, folder in zip(bags, folders, strict=True)
    ]
    return list(_run(work, jobs))


# In a process of the pool: set when one of the jobs failed or was interrupted.
_stopped: Event | None = None


def _run(work: Sequence[Job], jobs: int) -> Iterator[Path]:
    if jobs == 1:
        yield from map(run_job, work)
        return
    context = multiprocessing.get_context("spawn")
    stopped = context.Event()
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=context,
        initializer=_begin_process,
        initargs=(work[0].how.threads, stopped),
    )
    with pool:
        try:
            yield from pool.map(_run_unless_stopped, work)
        except BrokenProcessPool as err:
            raise SparseRefineError(
                f"a process of the evaluation ended, perhaps for want of memory ({err}); "
                f"evaluate with fewer than {jobs} jobs"
            ) from err
        finally:
            # The pool cancels what waits, but for the job that it has handed out ahead.
            stopped.set()


def _begin_process(threads: int, stopped: Event) -> None:
    global _stopped
    _stopped = stopped
    cv2.setNumThreads(threads)


def _run_unless_stopped(job: Job) -> Path:
    """`run_job`; the first that fails stops those that have not begun, in all processes."""
    assert _stopped is not None
    if _stopped.is_set():
        raise SparseRefineError(f"{job.bag} was not begun, for an earlier bag failed; start again")
    try:
        return run_job(job)
    except BaseException:
        _stopped.set()
        raise


def summarise(folders: Sequence[Path], out: Path) -> Evaluation:
    """Join the results of several bags and write them to `summary.json`.

    Args:
        folders: of results, each of another bag; of the same bundle with the same options.
        out: folder for the summary; created when missing.

    Returns:
        scores over all frames of all bags.

    Raises:
        BagError: a folder holds no results.
        ConfigurationError: the same results are given twice, some are of a part of a bag, or do not
            belong together.
        SparseRefineError: the summary cannot be written.
    """
    metrics = [_read_metrics(folder) for folder in folders]
    for folder, content in zip(folders, metrics, strict=True):
        if content.get("part"):
            raise ConfigurationError(
                f"expected results of whole bags, {folder} is part {content['part']} of its bag; "
                f"join parts with: sparserefine evaluate --merge {folder / SCORES} ..."
            )
    _refuse_doubles(folders, metrics)
    parts, first = [], 0
    for folder in folders:
        part = read_json(folder / SCORES)
        frames = tuple(replace(each, index=each.index + first) for each in part.frames)
        parts.append(replace(part, frames=frames, data=f"{len(folders)} bags"))
        first += part.setting.frames
    whole = [replace(p, setting=replace(p.setting, data="bags", frames=first)) for p in parts]
    evaluation = Evaluation.merged(whole)
    labelled = any(each["labelled_frames"] for each in metrics)
    content = {
        "bags": [_row(each) for each in metrics],
        "scores": scores_to_json(evaluation, times=False) if labelled else None,
    }
    write_text_whole(out / SUMMARY, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return evaluation


def _refuse_doubles(folders: Sequence[Path], metrics: Sequence[dict[str, Any]]) -> None:
    """A bag that counts twice would shift every score."""
    seen: dict[object, Path] = {}
    for folder, content in zip(folders, metrics, strict=True):
        for key in (folder.resolve(), json.dumps(content)):
            if key in seen:
                raise ConfigurationError(
                    f"expected each bag once, got the same results in {seen[key]} and {folder}; "
                    "leave one out"
                )
            seen[key] = folder


def _read_metrics(folder: Path) -> dict[str, Any]:
    path = folder / METRICS
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise BagError(
            f"expected the results of a bag in {folder}, cannot read {path.name} ({err}); "
            "make them with sparserefine bag evaluate"
        ) from err
    return content


def _row(metrics: dict[str, Any]) -> dict[str, Any]:
    kept = ("bag", "frames", "labelled_frames", "refined_share", "mean_entropy_nats")
    row = {key: metrics[key] for key in kept}
    scores = metrics["scores"]
    row["miou"] = scores and list(scores["variants"].values())[-1]["miou"]
    return row
