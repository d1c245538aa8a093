# SPDX-License-Identifier: Apache-2.0
"""Built engines on disk: found by everything that went into them, verified before use.

An engine is `KEY.engine` with `KEY.json` beside it, where KEY is the SHA-256 of an `EngineKey`. The
engine is written first and the JSON last, each aside and renamed, so an engine without its JSON is
half an engine. One lock for the folder keeps two processes from building at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from sparserefine_ros.bundle_spec import Sha256
from sparserefine_ros.configuration import Record, describe_mistakes
from sparserefine_ros.dense.options import Progress, Report, silent
from sparserefine_ros.errors import BackendError, ConfigurationError
from sparserefine_ros.files import expanded, write_text_whole, write_whole

LOCK_FILE: Final = "lock"
_DIGEST: Final = re.compile("[0-9a-f]{64}")
LOCK_TIMEOUT_S: Final = 1800.0
_POLL_S: Final = 0.1
_OTHER_FOLDER: Final = (
    "grant access or choose another folder (node parameter engine_cache, option --engine-cache)"
)


class EngineKey(Record):
    """Everything that decides what an engine is.

    Attributes:
        onnx_sha256: of the bundle's ONNX file.
        precision: as in `EngineOptions`.
        shapes: of the network input: the only one; or the smallest, the usual and the largest.
        flavour, version: of TensorRT.
        target: GPUs it is built for, see `build_target`.
        flags: builder and network flags.
        builder: version of this package's builder.
    """

    onnx_sha256: Sha256
    precision: str
    shapes: tuple[tuple[int, ...], ...]
    flavour: str
    version: str
    target: str
    flags: tuple[str, ...]
    builder: int

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, hex."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class EngineRecord(Record):
    """Content of an engine's JSON file.

    Attributes:
        key: what the engine was built from.
        bundle: name of the bundle, for people.
        built_utc: when, ISO 8601.
        build_s: how long that took.
        size: bytes of the engine.
        sha256: of the engine.
    """

    key: EngineKey
    bundle: str
    built_utc: str
    build_s: float
    size: int
    sha256: Sha256


@dataclass(frozen=True)
class CachedEngine:
    """A verified engine.

    Attributes:
        record: where it comes from.
        data: the serialised engine.
    """

    record: EngineRecord
    data: bytes


class DamagedEngineError(BackendError):
    """A file of the cache is not what was written there."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/sparserefine_ros/engines`, with `~/.cache` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "sparserefine_ros" / "engines"


class EngineCache:
    """The engines of a folder.

    Args:
        folder: where they lie; None for `default_cache`. It is made when the first one is written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = expanded(folder or default_cache())

    def find(self, key: EngineKey) -> CachedEngine | None:
        """The engine built from `key`; None where there is none.

        Raises:
            DamagedEngineError: there is one, but it is cut short, changed or not of this key.
            BackendError: the folder cannot be read.
        """
        digest = key.digest
        try:
            if not (self._json(digest).exists() or self._engine(digest).exists()):
                return None
        except OSError as err:
            raise BackendError(
                f"cannot read engines in {self.folder}: {err.strerror}; {_OTHER_FOLDER}"
            ) from err
        found = self.load(digest)
        if found.record.key != key:
            raise DamagedEngineError(f"{self._json(digest)} describes an engine of another key")
        return found

    def load(self, digest: str) -> CachedEngine:
        """The engine with this key digest, verified against its JSON file.

        Raises:
            DamagedEngineError: a file is missing, cut short, changed, or filed under a wrong key.
        """
        record = self.read_record(digest)
        path = self._engine(digest)
        try:
            data = path.read_bytes()
        except OSError as err:
            raise DamagedEngineError(f"{path} cannot be read: {err.strerror}") from err
        if len(data) != record.size:
            raise DamagedEngineError(f"{path} has {len(data)} bytes instead of {record.size}")
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise DamagedEngineError(f"{path} changed: its SHA-256 is not the recorded one")
        return CachedEngine(record, data)

    def read_record(self, digest: str) -> EngineRecord:
        """The JSON file of an engine.

        Raises:
            DamagedEngineError: it is missing, malformed, or filed under a wrong key.
        """
        path = self._json(digest)
        try:
            record = EngineRecord.model_validate_json(path.read_bytes())
        except OSError as err:
            raise DamagedEngineError(f"{path} cannot be read: {err.strerror}") from err
        except ValidationError as err:
            raise DamagedEngineError(f"{path} is malformed: {describe_mistakes(err)}") from err
        if record.key.digest != digest:
            raise DamagedEngineError(f"{path} describes an engine of another key")
        return record

    def store(self, record: EngineRecord, data: bytes) -> None:
        """Write an engine; call it with the lock held.

        Raises:
            SparseRefineError: it cannot be written.
        """
        digest = record.key.digest
        # Without its JSON the old engine counts for nothing while the new one is written.
        self._delete(self._json(digest))
        write_whole(self._engine(digest), data)
        write_text_whole(self._json(digest), record.model_dump_json(indent=2) + "\n")

    def digests(self) -> list[str]:
        """Key digest of every engine, whole or not, in order; other files are none."""
        names = {path.stem for end in ("json", "engine") for path in self.folder.glob(f"*.{end}")}
        return sorted(name for name in names if _DIGEST.fullmatch(name))

    def resolve(self, prefix: str) -> str:
        """The one key digest that starts with `prefix`.

        Raises:
            ConfigurationError: there is none, or more than one.
        """
        matches = [digest for digest in self.digests() if digest.startswith(prefix)]
        if len(matches) != 1 or not prefix:
            raise ConfigurationError(
                f"expected the first digits of one key in {self.folder}, {prefix!r} fits "
                f"{len(matches)}; see: sparserefine engine list"
            )
        return matches[0]

    def size(self, digest: str) -> int:
        """Bytes on disk of an engine and its JSON file."""
        files = (self._engine(digest), self._json(digest))
        return sum(path.stat().st_size for path in files if path.exists())

    def remove(self, digest: str) -> None:
        """Delete an engine and its JSON file.

        Raises:
            BackendError: they cannot be deleted.
        """
        self._delete(self._json(digest))
        self._delete(self._engine(digest))

    @contextlib.contextmanager
    def lock(self, report: Report = silent, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Keep other processes and threads from building in this folder.

        The lock goes with its holder: that of a killed process is free.

        Raises:
            BackendError: the folder cannot be written, or another process holds the lock for too
                long.
        """
        path = self.folder / LOCK_FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stream = path.open("a")
        except OSError as err:
            raise BackendError(
                f"cannot write engines to {self.folder}: {err.strerror}; {_OTHER_FOLDER}"
            ) from err
        with stream:
            self._wait(stream.fileno(), report, timeout_s)
            yield

    def _wait(self, descriptor: int, report: Report, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not self._try_lock(descriptor):
            if time.monotonic() >= deadline_s:
                raise BackendError(
                    f"another process has been building an engine in {self.folder} for "
                    f"{timeout_s:g} s; stop it or wait for it, then try again"
                )
            report(Progress("waiting for another process that builds an engine"))
            time.sleep(_POLL_S)

    def _try_lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as err:
            raise BackendError(
                f"cannot lock {self.folder}: {err.strerror}; {_OTHER_FOLDER}"
            ) from err
        return True

    @staticmethod
    def _delete(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            raise BackendError(f"cannot delete {path}: {err.strerror}; grant access") from err

    def _engine(self, digest: str) -> Path:
        return self.folder / f"{digest}.engine"

    def _json(self, digest: str) -> Path:
        return self.folder / f"{digest}.json"
