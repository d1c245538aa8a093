# SPDX-License-Identifier: Apache-2.0
"""YAML files read into frozen, validated records: one place that reports all mistakes together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError

from sparserefine_ros.errors import SparseRefineError


class Record(BaseModel):
    """Base of configuration records: immutable, unknown fields are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


R = TypeVar("R", bound=Record)

_KIND: Final = "kind="


def kind_or(default: str) -> Discriminator:
    """The field `kind` chooses between the members of a union; left out, it is `default`.

    The members are tagged `Tag("kind=NAME")`.
    """

    def kind_of(value: Any) -> str | None:
        if isinstance(value, dict):
            return f"{_KIND}{value.get('kind', default)}"
        return f"{_KIND}{value.kind}" if hasattr(value, "kind") else None

    return Discriminator(kind_of)


def read_yaml(path: Path, kind: type[R], error: type[SparseRefineError]) -> R:
    """Read `path` into a record of type `kind`.

    Raises:
        error: the file is missing, is not YAML, or does not fit; the text lists every mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise error(f"expected a readable file {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise error(f"{path} is not UTF-8 text: {err.reason}; save it as UTF-8") from err
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as err:  # ValueError: a date such as 2024-02-30
        raise error(f"{path} is not valid YAML: {err}") from err
    if not isinstance(content, dict):
        raise error(f"{path}: expected a mapping of fields, got {type(content).__name__}")
    try:
        return kind.model_validate(content)
    except ValidationError as err:
        raise error(f"{path}: {describe_mistakes(err)}") from err


def describe_mistakes(err: ValidationError) -> str:
    """One line for each mistake: the field, what was expected, what came."""
    lines = []
    for mistake in err.errors(include_url=False):
        # A part "kind=..." names a member of a union, not a field.
        fields = [str(part) for part in mistake["loc"] if not str(part).startswith(_KIND)]
        where = ".".join(fields) or "(whole file)"
        if mistake["type"] == "union_tag_invalid":
            known = mistake["ctx"]["expected_tags"].replace(_KIND, "")
            found = mistake["ctx"]["tag"].removeprefix(_KIND)
            lines.append(f"{where}.kind: expected one of {known}, got {found!r}")
        elif mistake["type"] == "union_tag_not_found":
            lines.append(
                f"{where}: expected a mapping of fields, such as kind, "
                f"got {_shorten(mistake['input'])}"
            )
        elif mistake["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown field; remove it or correct its name")
        elif mistake["type"] == "missing":
            lines.append(f"{where}: required field is missing; add it")
        else:
            text = mistake["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {text}, got {_shorten(mistake['input'])}")
    return "; ".join(lines)


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def write_yaml(path: Path, record: Record, *, heading: str) -> None:
    """Write a record so that `read_yaml` gives it back; fields left at None are omitted."""
    content = record.model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
    path.write_text(f"# {heading}\n{text}", encoding="utf-8")
