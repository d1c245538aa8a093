# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from sparserefine_ros.data.datasets import Sample
from sparserefine_ros.training import cache
from sparserefine_ros.training.cache import CachedItems, memory_bytes


@dataclass(frozen=True)
class Record:
    sample: Sample
    scores: Tensor
    missing: Tensor | None = None


def make_record(index: int) -> Record:
    sample = Sample(str(index), np.zeros((5, 7, 3), np.uint8), np.full((5, 7), index, np.uint8))
    return Record(sample, torch.zeros(3, 4))


def test_memory_counts_every_array_and_tensor() -> None:
    assert memory_bytes(make_record(0)) == 5 * 7 * 4 + 3 * 4 * 4


@pytest.mark.parametrize(("room", "kept"), [(10, 5), (5, 5), (4, 4), (2.9, 2), (0, 0)])
def test_keeps_what_fits_and_makes_the_rest_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: float, kept: int
) -> None:
    size = memory_bytes(make_record(0))
    monkeypatch.setattr(cache, "MEMORY_LIMIT_BYTES", int(room * size))
    made: list[int] = []

    def make(index: int) -> Record:
        made.append(index)
        return make_record(index)

    with caplog.at_level(logging.INFO):
        items = CachedItems(make, 5, label="records")
    assert made == list(range(min(5, kept + 1)))
    assert (f"records: {kept} of 5 fit" in caplog.text) == (kept < 5)
    made.clear()
    assert len(items) == 5
    for _ in range(2):
        assert [item.sample.name for item in items] == ["0", "1", "2", "3", "4"]
        assert [items[i].sample.name for i in (4, 0)] == ["4", "0"]
    once = [*range(kept, 5), *([4] if kept < 5 else []), *([0] if kept == 0 else [])]
    assert made == once * 2
    with pytest.raises(IndexError):
        items[5]
    with pytest.raises(IndexError):
        items[-1]
