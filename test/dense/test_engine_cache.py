# SPDX-License-Identifier: Apache-2.0
"""The cache on disk, without any engine: what is damaged is noticed, and one process builds."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparserefine_ros.dense.engine_cache import (
    DamagedEngineError,
    EngineCache,
    EngineKey,
    EngineRecord,
    default_cache,
)
from sparserefine_ros.dense.options import Progress
from sparserefine_ros.errors import BackendError, ConfigurationError, SparseRefineError

KEY = EngineKey(
    onnx_sha256="ab" * 32,
    precision="fp16",
    shapes=((1, 3, 24, 32),),
    flavour="tensorrt",
    version="11.0",
    target="NVIDIA Toy, compute capability 9.0",
    flags=("STRONGLY_TYPED",),
    builder=1,
)
DATA = bytes(range(256)) * 40


def record_of(key: EngineKey, data: bytes = DATA) -> EngineRecord:
    return EngineRecord(
        key=key,
        bundle="toy",
        built_utc="2026-01-02T03:04:05+00:00",
        build_s=1.5,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    """A cache with the engine of `KEY`."""
    made = EngineCache(tmp_path / "engines")
    with made.lock():
        made.store(record_of(KEY), DATA)
    return made


def engine_file(cache: EngineCache) -> Path:
    return cache.folder / f"{KEY.digest}.engine"


def json_file(cache: EngineCache) -> Path:
    return cache.folder / f"{KEY.digest}.json"


def test_what_was_stored_is_found_by_a_new_cache(cache: EngineCache) -> None:
    found = EngineCache(cache.folder).find(KEY)
    assert found is not None
    assert (found.data, found.record) == (DATA, record_of(KEY))
    assert sorted(path.name for path in cache.folder.iterdir()) == sorted(
        [f"{KEY.digest}.engine", f"{KEY.digest}.json", "lock"]
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("onnx_sha256", "cd" * 32),
        ("precision", "model"),
        ("shapes", ((1, 3, 24, 36),)),
        ("shapes", ((1, 3, 24, 32), (1, 3, 24, 32), (1, 3, 48, 64))),
        ("flavour", "tensorrt_rtx"),
        ("version", "11.0.1"),
        ("target", "NVIDIA Toy Max, compute capability 9.0"),
        ("flags", ()),
        ("builder", 2),
    ],
)
def test_every_field_of_the_key_counts(cache: EngineCache, field: str, value: Any) -> None:
    assert cache.find(KEY.model_copy(update={field: value})) is None


def test_no_field_is_left_out_of_the_test_above() -> None:
    assert set(EngineKey.model_fields) == {
        "onnx_sha256", "precision", "shapes", "flavour", "version", "target", "flags", "builder",
    }  # fmt: skip


class TestDamage:
    @pytest.mark.parametrize("size", [0, 1, len(DATA) // 2, len(DATA) - 1])
    def test_cut_short(self, cache: EngineCache, size: int) -> None:
        engine_file(cache).write_bytes(DATA[:size])
        with pytest.raises(DamagedEngineError, match=f"has {size} bytes instead of {len(DATA)}"):
            cache.find(KEY)

    def test_one_bit_changed(self, cache: EngineCache) -> None:
        changed = bytearray(DATA)
        changed[777] ^= 1
        engine_file(cache).write_bytes(changed)
        with pytest.raises(DamagedEngineError, match="its SHA-256 is not the recorded one"):
            cache.find(KEY)

    def test_wrong_hash_recorded(self, cache: EngineCache) -> None:
        fields = json.loads(json_file(cache).read_text())
        fields["sha256"] = "0" * 64
        json_file(cache).write_text(json.dumps(fields))
        with pytest.raises(DamagedEngineError, match="SHA-256"):
            cache.find(KEY)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"key": '])
    def test_malformed_json(self, cache: EngineCache, text: str) -> None:
        json_file(cache).write_text(text)
        with pytest.raises(DamagedEngineError, match="is malformed"):
            cache.find(KEY)

    @pytest.mark.parametrize("missing", ["json", "engine"])
    def test_half_of_the_pair(self, cache: EngineCache, missing: str) -> None:
        (json_file if missing == "json" else engine_file)(cache).unlink()
        with pytest.raises(DamagedEngineError, match=f"{missing} cannot be read"):
            cache.find(KEY)

    def test_the_engine_of_another_gpu_under_this_name(self, cache: EngineCache) -> None:
        foreign = KEY.model_copy(update={"target": "NVIDIA Other, compute capability 8.6"})
        json_file(cache).write_text(record_of(foreign).model_dump_json())
        with pytest.raises(DamagedEngineError, match="describes an engine of another key"):
            cache.find(KEY)

    def test_storing_again_repairs(self, cache: EngineCache) -> None:
        engine_file(cache).write_bytes(b"")
        cache.store(record_of(KEY, b"new"), b"new")
        found = cache.find(KEY)
        assert found is not None
        assert found.data == b"new"


class TestHousekeeping:
    def test_keys_by_their_first_digits(self, cache: EngineCache) -> None:
        assert cache.digests() == [KEY.digest]
        assert cache.resolve(KEY.digest[:6]) == KEY.digest
        with pytest.raises(ConfigurationError, match="'zz' fits 0; see: sparserefine engine list"):
            cache.resolve("zz")
        with pytest.raises(ConfigurationError, match="'' fits 1"):
            cache.resolve("")
        other = KEY.model_copy(update={"builder": 2})
        cache.store(record_of(other), DATA)
        with pytest.raises(ConfigurationError, match="'' fits 2"):
            cache.resolve("")

    def test_other_files_are_no_engines(self, cache: EngineCache) -> None:
        """A mistaken folder must not be cleaned."""
        for name in ("bench.json", f"{KEY.digest}0.json", "model.engine"):
            (cache.folder / name).write_text("{}")
        assert cache.digests() == [KEY.digest]

    def test_removal(self, cache: EngineCache) -> None:
        assert cache.size(KEY.digest) > len(DATA)
        cache.remove(KEY.digest)
        assert cache.digests() == []
        assert cache.find(KEY) is None

    def test_an_absent_folder_is_empty(self, tmp_path: Path) -> None:
        cache = EngineCache(tmp_path / "nowhere")
        assert cache.digests() == []
        assert cache.find(KEY) is None
        assert not cache.folder.exists()

    @pytest.mark.parametrize(
        ("value", "expected"),
        [("/x/cache", "/x/cache"), ("relative", "/home/me/.cache"), ("", "/home/me/.cache")],
    )
    def test_location_follows_xdg(
        self, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache() == Path(expected) / "sparserefine_ros" / "engines"
        assert EngineCache().folder == default_cache()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = EngineCache(tmp_path / "file" / "engines")
    with pytest.raises(BackendError, match=r"cannot write engines to .*engine_cache"), cache.lock():
        pytest.fail("reached")


def test_a_failed_write_leaves_nothing_that_passes_for_an_engine(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _content: bytes) -> None:
        raise SparseRefineError("cannot write: No space left on device")

    monkeypatch.setattr("sparserefine_ros.dense.engine_cache.write_whole", full)
    with pytest.raises(SparseRefineError, match="No space left"):
        cache.store(record_of(KEY, b"new"), b"new")
    with pytest.raises(DamagedEngineError):
        cache.find(KEY)


HOLD = """
import sys
from pathlib import Path
from sparserefine_ros.dense.engine_cache import EngineCache
with EngineCache(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


class TestLock:
    @pytest.fixture
    def holder(
        self, cache: EngineCache, package_environment: dict[str, str]
    ) -> Iterator[subprocess.Popen[str]]:
        """A process that holds the lock until it is killed."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(cache.folder)],
            env=package_environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with process:
            yield process
            process.kill()

    def test_waits_tells_so_and_gives_up(
        self, cache: EngineCache, holder: subprocess.Popen[str]
    ) -> None:
        told: list[Progress] = []
        with (
            pytest.raises(BackendError, match=r"another process has been building .* for 0\.3 s"),
            cache.lock(told.append, timeout_s=0.3),
        ):
            pytest.fail("reached")
        assert {progress.doing for progress in told} == {
            "waiting for another process that builds an engine"
        }

    def test_goes_with_a_killed_holder(
        self, cache: EngineCache, holder: subprocess.Popen[str]
    ) -> None:
        told: list[Progress] = []

        def kill(progress: Progress) -> None:
            told.append(progress)
            holder.kill()

        with cache.lock(kill, timeout_s=20.0):
            assert told

    def test_keeps_threads_apart_too(self, cache: EngineCache) -> None:
        with cache.lock(), pytest.raises(BackendError), cache.lock(timeout_s=0.0):
            pytest.fail("reached")
        with cache.lock(timeout_s=0.0):
            pass
