# SPDX-License-Identifier: Apache-2.0
"""Names and colours of a foreign network's classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import Field, field_validator

from sparserefine_ros.bundle_spec import ClassSpec
from sparserefine_ros.configuration import Record, read_yaml
from sparserefine_ros.data.layouts import LEGENDS
from sparserefine_ros.errors import ConfigurationError

_FEWEST, _MOST = 2, 255
_GOLDEN_RATIO: Final = 0.618033988749895


class _ClassFile(Record, extra="ignore"):
    """A YAML file with classes, such as a `dataset.yaml` or a `bundle.yaml`."""

    classes: tuple[ClassSpec, ...] = Field(min_length=_FEWEST, max_length=_MOST)

    @field_validator("classes")
    @classmethod
    def _differ(cls, classes: tuple[ClassSpec, ...]) -> tuple[ClassSpec, ...]:
        if len({entry.name for entry in classes}) != len(classes):
            raise ValueError("expected unique class names")
        return classes


def read_classes(text: str) -> tuple[ClassSpec, ...]:
    """Classes as a command line gives them.

    Args:
        text: a number of classes; the name of a data set, one of `LEGENDS`; a YAML file with
            `classes`, such as `dataset.yaml`; or another text file with one name on each line.

    Raises:
        ConfigurationError: none of these, or fewer than 2 or more than 255 classes.
    """
    if text in LEGENDS:
        return tuple(ClassSpec(name=name, colour=colour) for name, colour in LEGENDS[text])
    if text.isdecimal():
        if not _FEWEST <= int(text) <= _MOST:
            raise ConfigurationError(f"expected {_FEWEST} to {_MOST} classes, got {text}")
        return name_classes([f"class {label}" for label in range(int(text))])
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        return read_yaml(path, _ClassFile, ConfigurationError).classes
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigurationError(
            f"expected classes as a number, as a data set of {', '.join(LEGENDS)}, or as a "
            f"readable file, got {text!r}: {err}"
        ) from err
    return name_classes([line.strip() for line in lines if line.strip()])


def name_classes(names: Sequence[str]) -> tuple[ClassSpec, ...]:
    """Classes of these names in colours that differ.

    Raises:
        ConfigurationError: names occur twice, or are fewer than 2 or more than 255.
    """
    if not _FEWEST <= len(names) <= _MOST or len(set(names)) < len(names):
        raise ConfigurationError(
            f"expected {_FEWEST} to {_MOST} classes of different names, got {len(names)}"
            f"{'' if len(set(names)) == len(names) else ', some of them twice'}"
        )
    return tuple(ClassSpec(name=name, colour=_colour(label)) for label, name in enumerate(names))


def _colour(label: int) -> tuple[int, int, int]:
    """Hues a golden section apart; brightness alternates."""
    hue, value = (label * _GOLDEN_RATIO) % 1.0, 0.95 - 0.2 * (label % 3)
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
    return round(255 * red), round(255 * green), round(255 * blue)
