# SPDX-License-Identifier: Apache-2.0
"""A bundle run over a bag: every picture in order, scored where there are labels.

Pictures are decoded ahead of the networks, scores and maps are made behind them, each in a thread;
several pictures may be segmented at the same time.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

from sparserefine_ros.bags.desk import Desk
from sparserefine_ros.bags.frames import BagFrame, BagFrames
from sparserefine_ros.bags.labels import FolderLabels, Labels, NoLabels, TopicLabels
from sparserefine_ros.bags.maps import WANTED, maps_folder
from sparserefine_ros.bags.overlap import Behind, read_ahead, side_by_side
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.bags.results import BagOptions, BagResult
from sparserefine_ros.bags.topics import check_image_topic, choose_image_topic
from sparserefine_ros.bags.writer import open_writer
from sparserefine_ros.bundle import Bundle
from sparserefine_ros.data.sample import Sample, checked_sample
from sparserefine_ros.dense.devices import device_kind
from sparserefine_ros.errors import BagError
from sparserefine_ros.evaluation.evaluate import gather
from sparserefine_ros.evaluation.frames import Contest, FrameEvaluator, Runs
from sparserefine_ros.pipeline import PipelineOptions
from sparserefine_ros.processor import available_cores
from sparserefine_ros.records import IGNORED_LABEL

# Pictures decoded ahead, and results that wait for their scores.
_DEPTH: Final = 3


def evaluate_bag(
    path: Path, bundle: Bundle, how: PipelineOptions, options: BagOptions, folder: Path
) -> BagResult:
    """Run a bundle over a bag and score it.

    Args:
        path: the bag.
        bundle: what is run.
        how: its engine options; 0 threads divide the cores among the streams.
        options: what of the bag is evaluated.
        folder: where the bag of maps is written, if one is wanted.

    Raises:
        BagError: the bag cannot be read, lacks a topic, or holds no usable picture.
        SparseRefineError: the bundle cannot be run, or labels are wrong.
    """
    how, streams = share_cores(how, options.streams)
    with Bag(path) as bag:
        topic = choose_image_topic(bag, options.image_topic, label_topic=options.label_topic)
        frames = BagFrames(bag, topic, options.subset)
        labels = _open_labels(bag, topic, options)
        contest = Contest(bundle, how, counts_refiner_macs=False)
        evaluators = [FrameEvaluator(contest) for _ in range(streams)]
        with contextlib.ExitStack() as closing:
            maps = None
            if options.maps:
                opened = open_writer(maps_folder(folder), storage="mcap", compression="zstd")
                maps = closing.enter_context(opened)
            desk = Desk(evaluators[0], maps, options, frames=frames.counts.expected)
            start_s = time.perf_counter()
            _run(frames, labels, evaluators, desk)
            seconds = time.perf_counter() - start_s
        if not desk.results:
            raise BagError(
                f"expected a picture on {topic} of {path}, none of {frames.counts.messages} "
                f"messages is one; {frames.counts.first_rejection or '; '.join(bag.damage)}"
            )
        part = str(options.subset) if options.subset.shards > 1 else ""
        labels.check(frames.counts.missing, bag.damage, part=bool(part))
        name = bag.path.resolve().name
        evaluation = gather(
            contest, desk.results, frames=frames.counts.messages, data=f"bag {name}, {topic}"
        )
        return BagResult(
            bag=name,
            part=part,
            image_topic=topic,
            labels=options.label_topic or ("folder" if options.label_folder else ""),
            evaluation=evaluation,
            rows=tuple(desk.rows),
            counts=frames.counts,
            unusable_labels=labels.unusable,
            damage=bag.damage,
            worst=desk.worst(),
            seconds=seconds,
            streams=streams,
            threads=how.threads,
        )


def share_cores(how: PipelineOptions, streams: int, jobs: int = 1) -> tuple[PipelineOptions, int]:
    """Divide the cores.

    Two pictures at a time keep the cores of a CPU busy where the threads of one wait for each
    other; a GPU is busy with one.

    Args:
        how: engine options; 0 threads for a share of the cores.
        streams: pictures at a time; 0 to choose.
        jobs: bags at a time.

    Returns:
        the options with their threads, and the streams.
    """
    cores = max(1, available_cores() // jobs)
    spare = device_kind(how.device) == "cpu" and cores >= 2 * max(1, how.threads)
    streams = streams or (2 if spare else 1)
    return replace(how, threads=how.threads or max(1, cores // streams)), streams


def _open_labels(bag: Bag, image_topic: str, options: BagOptions) -> Labels:
    if options.label_topic is not None:
        return TopicLabels(bag, check_image_topic(bag, options.label_topic))
    if options.label_folder is not None:
        messages = bag.announced.get(image_topic, 0)
        return FolderLabels(options.label_folder, messages, damage=bag.damage)
    return NoLabels()


def _run(
    frames: BagFrames,
    labels: Labels,
    evaluators: Sequence[FrameEvaluator],
    desk: Desk,
) -> None:
    classes = len(evaluators[0].pipeline.bundle.class_names)
    ways = [functools.partial(_segment, evaluator) for evaluator in evaluators]
    with (
        contextlib.closing(read_ahead(_samples(frames, labels, classes), _DEPTH)) as samples,
        contextlib.closing(side_by_side(ways, samples)) as segmented,
        Behind(desk.take, _DEPTH) as behind,
    ):
        for item in tqdm(segmented, total=frames.counts.expected, unit="frame", desc="evaluating"):
            behind.add(item)


def _segment(
    evaluator: FrameEvaluator, item: tuple[BagFrame, Sample]
) -> tuple[BagFrame, Sample, Runs]:
    frame, sample = item
    return frame, sample, evaluator.run(sample, WANTED)


def _samples(frames: BagFrames, labels: Labels, classes: int) -> Iterator[tuple[BagFrame, Sample]]:
    for frame in frames:
        name, known = frame.header.text, labels(frame)
        if known is None:
            nothing = np.full(frame.image.shape[:2], IGNORED_LABEL, np.uint8)
            yield frame, Sample(name, frame.image, nothing)
        else:
            yield frame, checked_sample(name, frame.image, known, classes=classes)
