# SPDX-License-Identifier: Apache-2.0
"""Accuracy, calibration and cost of a bundle on a labelled data set, in one process or several."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import cv2
from tqdm import tqdm

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.datasets import SegmentationDataset
from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.evaluation.evaluation import Evaluation
from sparserefine_ros.evaluation.frames import Contest, FrameEvaluator, FrameResult, Task
from sparserefine_ros.evaluation.measure import describe_machine
from sparserefine_ros.evaluation.scores import FrameScore, Setting, Tally
from sparserefine_ros.evaluation.subset import ALL_FRAMES, Subset
from sparserefine_ros.pipeline import PipelineOptions
from sparserefine_ros.processor import available_cores


def evaluate(
    bundle: Bundle,
    dataset: SegmentationDataset,
    options: PipelineOptions,
    *,
    dense_full: Bundle | None = None,
    data: str = "",
    subset: Subset = ALL_FRAMES,
    processes: int = 1,
) -> Evaluation:
    """Run a bundle over a data set.

    Args:
        bundle: what is scored.
        dataset: labelled frames; its classes must be the bundle's. It is pickled when there are
            several processes.
        options: how the bundle is run; its threads are those of each process, 0 divides the cores
            among them.
        dense_full: a bundle whose dense model alone is scored beside it: `at_full_resolution`
            of this one, or one trained at full resolution.
        data: the data set and its split in words, as "camvid:/data/camvid, val".
        subset: which frames.
        processes: number of processes; the scores do not depend on it.

    Raises:
        ConfigurationError: the classes differ, no frame is left, or fewer than one process.
        SparseRefineError: a frame failed, or a process ended.
    """
    if processes < 1:
        raise ConfigurationError(f"expected 1 process or more, got {processes}")
    check_comparable(bundle, dataset, dense_full)
    if dense_full is not None:
        dense_full = _dense_alone(dense_full)
    indices = subset.indices(len(dataset))
    processes = min(processes, len(indices))
    threads = options.threads or max(1, available_cores() // processes)
    contest = Contest(bundle, replace(options, threads=threads), dense_full)
    task = Task(contest, dataset)
    results = _evaluate_frames(task, indices, processes)
    progress = tqdm(results, total=len(indices), unit="frame", desc="evaluating")
    return gather(contest, progress, frames=subset.total(len(dataset)), data=data)


def gather(
    contest: Contest, results: Iterable[FrameResult], *, frames: int, data: str
) -> Evaluation:
    """Add the results of frames up as they come.

    Args:
        contest: what is scored.
        results: of at least one frame.
        frames: number of frames of the whole evaluation.
        data: the data set and its split in words.
    """
    bundle, dense_full = contest.bundle, contest.dense_full
    tally = Tally.empty(contest.variants, len(bundle.class_names))
    scores: list[FrameScore] = []
    notes: dict[str, None] = {}
    for result in results:
        tally.merge(result.tally)
        scores.append(result.score)
        notes.update(dict.fromkeys(result.notes))
    return Evaluation(
        setting=Setting(
            bundle=bundle.name,
            digest=bundle.digest,
            dense_full=_describe(dense_full) if dense_full else "",
            class_names=bundle.class_names,
            variants=contest.variants,
            selector=result.selector,
            frames=frames,
            data=re.sub(r"^(?!street)(\w+):.*(?=, )", r"\1", data),
        ),
        data=data,
        machines=(f"{describe_machine()}; {result.engines}",),
        frames=tuple(scores),
        tally=tally,
        parameters=result.parameters,
        notes=tuple(notes),
    )


def check_comparable(
    bundle: Bundle, dataset: SegmentationDataset, dense_full: Bundle | None
) -> None:
    """Check that data, and a bundle that is scored beside, have a bundle's classes.

    Raises:
        ConfigurationError: they have others, or another order.
    """
    _check_classes("data", dataset.class_names, bundle)
    if dense_full is not None:
        _check_classes("a full-resolution bundle", dense_full.class_names, bundle)


def _check_classes(what: str, found: Sequence[str], bundle: Bundle) -> None:
    if tuple(found) != bundle.class_names:
        raise ConfigurationError(
            f"expected {what} with the bundle's classes {list(bundle.class_names)}, "
            f"got {list(found)}; evaluate on data labelled alike"
        )


def _describe(bundle: Bundle) -> str:
    taken = bundle.spec.dense.input
    size = f"scale {taken.scale}" if taken.size is None else f"{taken.size[1]}x{taken.size[0]}"
    return f"{bundle.name} at {size}, digest {bundle.digest}"


def at_full_resolution(bundle: Bundle) -> Bundle:
    """The dense model of a bundle alone, run at the size of the picture; nothing is written.

    Raises:
        ConfigurationError: the model takes one size only.
    """
    taken = bundle.spec.dense.input
    if taken.size is not None:
        raise ConfigurationError(
            f"expected a dense model with a free input size, {bundle.name} takes "
            f"{list(taken.size)} only; name a bundle trained at full resolution, or evaluate "
            "without the full-resolution column"
        )
    whole = taken.model_copy(update={"scale": 1.0})
    dense = bundle.spec.dense.model_copy(update={"input": whole})
    spec = bundle.spec.model_copy(update={"dense": dense})
    return _dense_alone(Bundle(bundle.folder, spec, bundle.digest))


def _dense_alone(bundle: Bundle) -> Bundle:
    spec = bundle.spec.model_copy(update={"refiner": None, "selector": None})
    return Bundle(bundle.folder, spec, bundle.digest)


def _evaluate_frames(task: Task, indices: Sequence[int], processes: int) -> Iterator[FrameResult]:
    """Results in the order of the indices."""
    if processes == 1:
        evaluate_frame = FrameEvaluator(task.contest)
        for index in indices:
            yield evaluate_frame(index, task.dataset[index])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_receive, initargs=(task,)
    ) as pool:
        try:
            yield from pool.map(_evaluate_here, indices)
        except BrokenProcessPool as err:
            raise SparseRefineError(
                f"a process of the evaluation ended, perhaps for want of memory ({err}); "
                f"evaluate with fewer than {processes} processes"
            ) from err


class _Worker:
    """The evaluator of a process, opened with its first frame, so that its errors are reported."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._evaluate: FrameEvaluator | None = None

    def __call__(self, index: int) -> FrameResult:
        if self._evaluate is None:
            cv2.setNumThreads(self._task.contest.options.threads)
            self._evaluate = FrameEvaluator(self._task.contest)
        return self._evaluate(index, self._task.dataset[index])


# Set once in each process of the pool, so that the task need not travel with every frame.
_worker: _Worker | None = None


def _receive(task: Task) -> None:
    global _worker
    _worker = _Worker(task)


def _evaluate_here(index: int) -> FrameResult:
    assert _worker is not None
    return _worker(index)
