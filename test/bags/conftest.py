# SPDX-License-Identifier: Apache-2.0
"""A labelled bag of the frames of `TinyData`, and the bundle that is run over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_data import TinyData

from sparserefine_ros.bundle import Bundle

FRAMES = 5


def tiny_bag(folder: Path, count: int = FRAMES, *, labels: bool = True, first: int = 0) -> Path:
    """Pictures on /image and labels on /truth, ten each second."""
    # Only now, for it skips the tests where the library is not installed.
    from bags.recording import raw, record

    data, entries = TinyData(first + count), []
    for index in range(count):
        sample, stamp_ns = data[first + index], (index + 1) * 10**8
        entries.append(raw(sample.image, "rgb8", stamp_ns))
        if labels:
            entries.append(raw(sample.labels, "mono8", stamp_ns, topic="/truth"))
    return record(folder, entries)


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="session")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bag(tmp_path_factory.mktemp("bags") / "drive")
