# SPDX-License-Identifier: Apache-2.0
"""A recording read back by the library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rerun", reason="rerun-sdk is not installed")

import pyarrow as pa
from rerun.chunk import RrdReader


def read_rows(path: Path, *, static: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The rows of each entity, each a dict of timelines and components, in the order of frames."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for chunk in RrdReader(path).stream():
        if chunk.is_static == static:
            rows.setdefault(chunk.entity_path, []).extend(_to_rows(chunk.to_record_batch()))
    return rows if static else {k: sorted(v, key=lambda r: r["frame"]) for k, v in rows.items()}


def _to_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Time stamps become nanoseconds, which Python's own cannot hold."""
    columns = {
        name: column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    return pa.RecordBatch.from_pydict(columns).to_pylist()


def component(row: dict[str, Any], name: str) -> Any:
    """The only value of a component, such as `Scalars:scalars`."""
    (value,) = row[name]
    return value
