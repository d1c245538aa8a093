# SPDX-License-Identifier: Apache-2.0
"""YAML files read into frozen, validated records: one place that reports all mistakes together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError

from sparserefine_ros.errors import SparseRefineError


class Record(BaseModel):
    """Base of configuration records: immutable, unknown fields are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


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


# Values of a file, aliases written out.
_MOST_VALUES: Final = 100_000
_SPECIAL_KEYS: Final = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")


class _StrictLoader(yaml.SafeLoader):
    """Refuses what would be misread, or takes forever: keys given twice, aliases of aliases."""

    def get_single_node(self) -> yaml.Node | None:
        """The whole document, of a size that can be looked at."""
        node = super().get_single_node()
        if node is not None and _values(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"expected {_MOST_VALUES} values at most, aliases written out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping, whose keys must differ."""
        seen = set()
        for key_node, _ in node.value:
            # Those of a merge (<<) may be given again, and only scalars can be keys.
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag not in _SPECIAL_KEYS:
                key = self.construct_object(key_node)
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key!r} is given twice", problem_mark=key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node holds, those of aliases each time; infinity where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]


def load_yaml(text: str, loader: type[yaml.SafeLoader] = _StrictLoader) -> Any:
    """The value of a YAML text.

    Args:
        text: YAML.
        loader: by default one that refuses keys given twice, and more values than can be meant.

    Raises:
        ValueError: it is not valid; the text tells why.
    """
    try:
        return yaml.load(text, loader)
    except RecursionError as err:
        raise ValueError("it is nested too deeply") from err
    # A date such as 2024-02-30, and words that a tag does not take, raise what they like.
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError) as err:
        raise ValueError(str(err)) from err


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
        content = load_yaml(text)
    except ValueError as err:
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
