# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from sparserefine_ros import processor
from sparserefine_ros.processor import available_cores, multiplies_bfloat16


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_quotas", list)
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, everything)
    assert available_cores() == len(everything)


@pytest.mark.parametrize(
    ("own", "quotas", "cores"),
    [
        ("/", {}, 64),
        ("/", {"": "max 100000"}, 64),
        ("/", {"": "200000 100000"}, 2),
        ("/", {"": "150000 100000"}, 2),
        ("/", {"": "1000 100000"}, 1),
        ("/", {"": "9900000 100000"}, 64),
        ("/", {"": "nonsense"}, 64),
        ("/a/b", {"a/b": "max 100000", "a": "300000 100000"}, 3),
        ("/a/b", {"a/b": "200000 100000", "a": "300000 100000"}, 2),
        ("/a", {"a/b": "200000 100000"}, 64),
        # A container that sees names from outside, but only its own folder.
        ("/docker/1f", {"": "400000 100000"}, 4),
        ("/../../x", {"": "400000 100000"}, 4),
    ],
)
def test_no_more_cores_than_the_quota_of_a_container(
    own: str,
    quotas: dict[str, str],
    cores: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(processor, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(processor, "_OWN_GROUP", tmp_path / "own")
    for folder, text in quotas.items():
        file = tmp_path / "groups" / folder / "cpu.max"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="utf-8")
    (tmp_path / "own").write_text(f"1:cpu:/other\n0::{own}\n", encoding="utf-8")
    assert available_cores() == cores


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of x86-64")
def test_bfloat16_needs_vectors_that_convert_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert multiplies_bfloat16(torch.device("cpu")) == bool(flags & {"avx512bw", "avx_ne_convert"})
