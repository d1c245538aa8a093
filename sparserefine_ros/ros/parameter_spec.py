# SPDX-License-Identifier: Apache-2.0
"""One ROS parameter: its default, range and description, declared and checked.

Lists of texts are tuples here and lists in ROS; `from_ros` and `to_ros` go between the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from sparserefine_ros.errors import ConfigurationError

Value = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True)
class ParameterSpec:
    """One ROS parameter.

    Attributes:
        name: ROS name.
        default: value when nobody sets one; its type is the parameter's type.
        description: what it does, with the unit.
        minimum, maximum: inclusive range of a number; None for other types.
        choices: the allowed texts; empty when any text is allowed.
        run_time: whether a configured node accepts a change.
    """

    name: str
    default: Value
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    run_time: bool = False

    @property
    def constraints(self) -> str:
        """Range or choices in words; empty when there are none."""
        if self.choices:
            return " or ".join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            return f"{_number(self.minimum)} .. {_number(self.maximum)}"
        return ""

    def descriptor(self) -> ParameterDescriptor:
        """The ROS descriptor with its range."""
        descriptor = ParameterDescriptor(
            name=self.name,
            description=self.description,
            additional_constraints=" or ".join(self.choices),
        )
        if self.minimum is not None and self.maximum is not None:
            if isinstance(self.default, int):
                bounds = IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum))
                descriptor.integer_range = [bounds]
            else:
                limits = FloatingPointRange(from_value=self.minimum, to_value=self.maximum)
                descriptor.floating_point_range = [limits]
        return descriptor


def from_ros(value: object) -> object:
    """A parameter's value as it is held here."""
    return tuple(value) if isinstance(value, list) else value


def to_ros(value: object) -> object:
    """A parameter's value as rclpy takes it."""
    return list(value) if isinstance(value, tuple) else value


def _number(value: float) -> str:
    return f"{value:.10g}"


def declare_parameter(node: Node, spec: ParameterSpec, *, read_only: bool = False) -> str:
    """Declare a parameter with the value the node was started with.

    A start value that does not fit is replaced by the default, so that the node comes up and can
    be given a better one; whole numbers are accepted for floating-point parameters.

    Args:
        node: owner of the parameter.
        spec: the parameter.
        read_only: whether changes are refused later.

    Returns:
        what is wrong with the start value; empty when nothing is.
    """
    descriptor = spec.descriptor()
    descriptor.read_only = read_only
    given = _start_value(node, spec)
    if isinstance(spec.default, float) and type(given) is int:
        given = float(given)
    # An empty list comes as nothing, for ROS cannot tell its type.
    empty = given is None and isinstance(spec.default, tuple)
    mistake = "" if empty else check_value(spec, given)
    value = spec.default if mistake or empty else given
    node.declare_parameter(spec.name, to_ros(value), descriptor, ignore_override=True)
    return mistake


def declare_parameters(node: Node, specs: Iterable[ParameterSpec]) -> dict[str, Any]:
    """Declare parameters that never change; return their values by name.

    Raises:
        ConfigurationError: start values that do not fit, all of them.
    """
    values, mistakes = {}, []
    for spec in specs:
        mistake = declare_parameter(node, spec, read_only=True)
        values[spec.name] = node.get_parameter(spec.name).value
        # rclpy checks ranges, but not choices.
        mistakes.append(mistake or check_value(spec, values[spec.name]))
    if any(mistakes):
        raise ConfigurationError("; ".join(filter(None, mistakes)))
    return values


def _start_value(node: Node, spec: ParameterSpec) -> object:
    """The value the node was started with, whatever its type."""
    default = to_ros(spec.default)
    node.declare_parameter(spec.name, default, ParameterDescriptor(dynamic_typing=True))
    value = from_ros(node.get_parameter(spec.name).value)
    node.undeclare_parameter(spec.name)
    return value


def check_value(spec: ParameterSpec, value: object) -> str:
    """What is wrong with a value of a parameter; empty when it fits."""
    kind = "list of str" if isinstance(spec.default, tuple) else type(spec.default).__name__
    expected = f"expected {kind} {spec.constraints}".rstrip()
    fits = type(value) is type(spec.default)
    if fits and isinstance(value, tuple):
        fits = all(isinstance(text, str) for text in value)
    if fits and spec.choices:
        fits = value in spec.choices
    if fits and spec.minimum is not None and spec.maximum is not None:
        fits = spec.minimum <= cast(float, value) <= spec.maximum
    return "" if fits else f"{spec.name}: {expected}, got {value!r}"
