# SPDX-License-Identifier: Apache-2.0
"""A bundle run over a source, with everything recorded that helps to understand its results."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ImageError
from sparserefine_ros.files import whole_file
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.run import describe
from sparserefine_ros.view.footage import open_footage
from sparserefine_ros.view.recording import WANTED, Recording


def record_view(
    bundle: Bundle,
    options: PipelineOptions,
    source: str,
    out: Path,
    *,
    image_topic: str | None = None,
    limit: int = 0,
) -> int:
    """Segment every frame of a source and record it for the Rerun viewer.

    Args:
        bundle: the model.
        options: how it is run.
        source: image, folder, video, street or bag, see `sparserefine_ros.view.footage`.
        out: the recording, an .rrd file; it appears when it is whole.
        image_topic: of a bag; None for its only one.
        limit: frames at most; 0 for all (30 of an endless source).

    Returns:
        the number of frames.

    Raises:
        BackendError: a library is not installed.
        ImageError: nothing to see at the source, or a picture in it cannot be read.
        SparseRefineError: bag, bundle or options cannot be used, or the file cannot be written.
    """
    count = 0
    with (
        open_footage(source, image_topic=image_topic, limit=limit) as footage,
        whole_file(out) as aside,
    ):
        with contextlib.closing(Recording(aside, bundle, fps=footage.fps)) as recording:
            pipeline = Pipeline(bundle, options)
            for shot in footage.shots:
                prediction = pipeline(shot.image, WANTED)
                recording.add(shot, prediction)
                count += 1
                print(f"{shot.name}: {describe(prediction)}", flush=True)
        remarks = footage.remarks()
        if not count:
            raise ImageError(
                f"expected a picture in {source}, found none; {'; '.join(remarks) or 'it is empty'}"
            )
    for remark in remarks:
        print(remark)
    return count
