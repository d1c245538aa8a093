# SPDX-License-Identifier: Apache-2.0
"""`sparserefine engine build | list | inspect | clean`."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sparserefine_ros.cli import main
from sparserefine_ros.dense import engines as dense_engines
from sparserefine_ros.dense.backends import installed_package
from sparserefine_ros.dense.engine_cache import EngineCache
from sparserefine_ros.dense.options import Progress, Report

needs_rtx = pytest.mark.skipif(
    installed_package("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed"
)


class Engines:
    """The command with a cache of its own."""

    def __init__(self, bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._bundle, self._capsys = str(bundle), capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What the command prints; on standard error when it fails."""
        self._capsys.readouterr()
        assert main(["engine", *arguments, "--engine-cache", str(self.folder)]) == code
        printed = self._capsys.readouterr()
        return printed.err if code and not printed.out else printed.out

    def build(self, *arguments: str, code: int = 0) -> str:
        chosen = ("--backend", "tensorrt_rtx", *arguments)
        return self("build", self._bundle, *chosen, code=code)


@pytest.fixture
def engines(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Engines:
    return Engines(tiny_bundle, tmp_path / "engines", capsys)


@needs_rtx
def test_built_once_listed_inspected_and_deleted(engines: Engines) -> None:
    assert engines("list") == f"no engines in {engines.folder}\n"
    first = engines.build("--picture-sizes", "64x48", "--precision", "fp16")
    key = re.search(r"key ([0-9a-f]{64})", first)
    assert key is not None
    assert first.startswith("tiny: built in ")
    assert engines.build("--picture-sizes", "64x48", "--precision", "fp16").startswith(
        "tiny: taken from the cache in "
    )
    heading, row, total = engines("list").splitlines()
    assert heading.split()[:3] == ["key", "bundle", "built"]
    assert re.match(
        rf"{key[1][:12]}  tiny +tensorrt_rtx [\d.]+ +fp16 +1x3x24x32 +[\d.]+ +\S+ +good$", row
    )
    assert total == f"1 in {engines.folder}"
    shown = engines("inspect", key[1][:8])
    assert f"key: {key[1]}" in shown
    assert "target: portable, compute capability 8.0 and later" in shown
    assert "state: good: size and SHA-256 are those recorded" in shown
    assert "1 engines deleted" in engines("clean", key[1][:8])
    assert engines("list").startswith("no engines")


@needs_rtx
def test_ranges_and_turing(engines: Engines) -> None:
    engines.build("--picture-sizes", "48x32,64x48,80x64")
    engines.build("--picture-sizes", "64x48", "--compute-capability", "7.5")
    listed = engines("list")
    assert "1x3x16x24 .. 1x3x32x40" in listed
    cache = EngineCache(engines.folder)
    targets = {cache.read_record(digest).key.target for digest in cache.digests()}
    assert targets == {"portable, compute capability 8.0 and later", "compute capability 7.5"}
    assert "2 engines deleted" in engines("clean", "--all")


@needs_rtx
def test_only_stale_engines_are_cleaned(engines: Engines) -> None:
    for size in ("64x48", "64x56", "64x64"):
        engines.build("--picture-sizes", size)
    cache = EngineCache(engines.folder)
    damaged, old, good = cache.digests()
    path = engines.folder / f"{damaged}.engine"
    path.write_bytes(path.read_bytes()[:100])
    kept = cache.load(old)
    older = kept.record.key.model_copy(update={"version": "0.9"})
    cache.store(kept.record.model_copy(update={"key": older}), kept.data)
    cache.remove(old)
    listed = engines("list")
    assert "damaged: " in listed
    assert re.search(r"stale: tensorrt_rtx is [\d.]+ now", listed)
    assert "state: damaged: " in engines("inspect", damaged[:10], code=1)
    assert "state: stale: " in engines("inspect", older.digest[:10], code=1)
    assert "2 engines deleted" in engines("clean", "--stale")
    assert cache.digests() == [good]


@needs_rtx
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--device", "abacus"), "expected the GPU as cuda or cuda:N, got 'abacus'"),
        ((), "expected the size of the camera's pictures"),
        (("--picture-sizes", "big"), "expected a picture size such as 1920x1080"),
        (("--picture-sizes", "64x48", "--compute-capability", "new"), "such as 7.5, got 'new'"),
        (("--picture-sizes", "64x48", "--precision", "fp7"), "takes precision model or fp16"),
    ],
    ids=["device", "no size", "size", "capability", "precision"],
)
def test_mistakes_are_one_line(engines: Engines, arguments: tuple[str, ...], text: str) -> None:
    error = engines.build(*arguments, code=1)
    assert text in error
    assert len(error.strip().splitlines()) == 1
    assert EngineCache(engines.folder).digests() == []


def test_unknown_key(engines: Engines) -> None:
    assert "'abc' fits 0" in engines("inspect", "abc", code=1)
    assert "'abc' fits 0" in engines("clean", "abc", code=1)


def test_without_tensorrt(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparserefine_ros.dense.backends.installed_package", lambda _: None)
    error = engines("build", "street_small", "--picture-sizes", "64x48", code=1)
    assert "found none; run: pip install 'tensorrt>=10', or pip install tensorrt-rtx" in error


@needs_rtx
def test_ctrl_c_ends_a_build(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_engine(*arguments: Any, report: Report, **options: Any) -> bytes:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        for _ in range(200):
            report(Progress("building", 0.5))
            time.sleep(0.05)
        raise AssertionError("built to the end")

    monkeypatch.setattr(dense_engines, "build_engine", build_engine)
    # A shell has what it starts in the background ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        engines.build("--picture-sizes", "64x48", code=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert EngineCache(engines.folder).digests() == []
