# SPDX-License-Identifier: Apache-2.0
"""One source of defaults, real descriptors, and changes that are all or nothing."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
import yaml
from rcl_interfaces.msg import ParameterType
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.ros.parameter_spec import declare_parameter, to_ros
from sparserefine_ros.ros.parameters import (
    PARAMETERS,
    NodeParameters,
    change,
    declare,
    find_mistakes,
    parameters_markdown,
    parameters_yaml,
    read,
    undeclared,
)

PARAMETER_FILE = Path(__file__).parents[2] / "config" / "segment.yaml"
RUN_TIME = {
    "latency_budget_ms",
    "entropy_threshold",
    "max_refined_pixels",
    "overlay_opacity",
    "latency_warn_ms",
    "latency_error_ms",
    "latency_error_after_s",
    "stale_after_s",
}


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    rclpy.init(context=made)
    yield made
    gc.collect()  # nodes go before the middleware does
    made.try_shutdown()


def node_with(context: Context, **values: Any) -> Node:
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return Node("parameters", context=context, parameter_overrides=overrides)


def test_parameter_file_holds_the_table() -> None:
    text = PARAMETER_FILE.read_text(encoding="utf-8")
    assert text == parameters_yaml()
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert values == {spec.name: to_ros(spec.default) for spec in PARAMETERS}
    assert {name: type(value) for name, value in values.items()} == {
        spec.name: type(to_ros(spec.default)) for spec in PARAMETERS
    }
    assert max(map(len, text.splitlines())) <= 100
    flowing = " ".join(line.strip().lstrip("# ") for line in text.splitlines())
    assert [spec.name for spec in PARAMETERS if spec.description not in flowing] == []


def test_parameter_file_starts_a_node_with_the_defaults(context: Context) -> None:
    arguments = ["--ros-args", "--params-file", str(PARAMETER_FILE)]
    node = Node("any_name", namespace="/robot", context=context, cli_args=arguments)
    assert declare(node) == {}
    assert read(node) == NodeParameters()


def test_start_values_of_no_parameter_are_named(context: Context) -> None:
    names = ("nope", "threads", "use_sim_time", "qos_overrides./image.subscription.depth")
    overrides = [Parameter(name, value=name == "use_sim_time") for name in names[::2]]
    overrides += [Parameter(name, value=1) for name in names[1::2]]
    node = Node("any_name", context=context, parameter_overrides=overrides)
    declare(node)
    assert undeclared(node) == ["nope"]


def test_defaults_are_free_of_mistakes() -> None:
    assert find_mistakes(NodeParameters(), classes=2) == []
    assert {spec.name for spec in PARAMETERS if spec.run_time} == RUN_TIME


def test_descriptors_tell_range_and_meaning(context: Context) -> None:
    node = node_with(context)
    declare(node)
    threshold = node.describe_parameter("entropy_threshold")
    assert threshold.floating_point_range[0].from_value == -1.0
    assert threshold.floating_point_range[0].to_value == pytest.approx(math.log(255))
    assert "nats" in threshold.description
    budget = node.describe_parameter("max_refined_pixels")
    assert (budget.integer_range[0].from_value, budget.integer_range[0].to_value) == (-1, 10**9)
    assert node.describe_parameter("transport").additional_constraints == "raw or compressed"
    assert all(node.describe_parameter(spec.name).description for spec in PARAMETERS)


def test_start_values_are_read_back(context: Context) -> None:
    node = node_with(context, bundle="/tmp/b", entropy_threshold=0.4, threads=3, autostart=False)
    assert declare(node) == {}
    expected = dataclasses.replace(
        NodeParameters(), bundle="/tmp/b", entropy_threshold=0.4, threads=3, autostart=False
    )
    assert read(node) == expected


def test_a_whole_number_starts_a_floating_point_parameter(context: Context) -> None:
    node = node_with(context, latency_warn_ms=200)
    assert declare(node) == {}
    value = read(node).latency_warn_ms
    assert (value, type(value)) == (200.0, float)


def test_unusable_start_values_are_all_named_and_replaced(context: Context) -> None:
    node = node_with(context, threads="many", overlay_opacity=1.5, max_refined_pixels=-2)
    mistakes = declare(node)
    assert mistakes == {
        "threads": "threads: expected int 0 .. 1024, got 'many'",
        "overlay_opacity": "overlay_opacity: expected float 0 .. 1, got 1.5",
        "max_refined_pixels": "max_refined_pixels: expected int -1 .. 1000000000, got -2",
    }
    assert read(node) == NodeParameters()
    assert node.describe_parameter("threads").integer_range[0].to_value == 1024


def test_all_mistakes_are_reported_together() -> None:
    parameters = dataclasses.replace(
        NodeParameters(),
        transport="zip",
        entropy_threshold=1.2,
        overlay_opacity=math.nan,
        picture_sizes="big",
        latency_warn_ms=300.0,
        latency_error_ms=100.0,
    )
    mistakes = "\n".join(find_mistakes(parameters, classes=3))
    assert "transport: expected str raw or compressed, got 'zip'" in mistakes
    assert "entropy_threshold: expected at most log(3) = 1.0986 nats" in mistakes
    assert "overlay_opacity: expected float 0 .. 1, got nan" in mistakes
    assert "latency_error_ms: expected at least latency_warn_ms = 300.0" in mistakes
    assert "picture_sizes: expected a picture size such as 1920x1080" in mistakes
    assert len(mistakes.splitlines()) == 5


@pytest.mark.parametrize("threshold", [-0.5, -1e-9])
def test_a_negative_threshold_other_than_minus_one_is_a_mistake(threshold: float) -> None:
    parameters = dataclasses.replace(NodeParameters(), entropy_threshold=threshold)
    assert find_mistakes(parameters) == [
        f"entropy_threshold: expected -1.0 or at least 0.0 nats, got {threshold}"
    ]


def test_threshold_limit_is_inclusive() -> None:
    parameters = dataclasses.replace(NodeParameters(), entropy_threshold=math.log(11))
    assert find_mistakes(parameters, classes=11) == []
    assert len(find_mistakes(parameters, classes=10)) == 1


def test_change_keeps_what_is_not_named() -> None:
    current = dataclasses.replace(NodeParameters(), bundle="b", stale_after_s=9.0)
    changed = change(current, {"entropy_threshold": 0.3}, configured=True, classes=11)
    assert changed == dataclasses.replace(current, entropy_threshold=0.3)


def test_only_run_time_parameters_change_on_a_configured_node() -> None:
    current = NodeParameters()
    for spec in PARAMETERS:
        if spec.run_time:
            continue
        other: Any = {
            "image_reliability": "reliable",
            "output_reliability": "best_effort",
            "camera_names": ("front",),
            "dense_precision": "fp16",
            "picture_sizes": "640x480",
        }.get(
            spec.name,
            {str: "compressed", bool: False, int: 4, float: 0.5, tuple: ("/a/image",)}[
                type(spec.default)
            ],
        )
        with pytest.raises(ConfigurationError, match=rf"{spec.name}: .*configure.*restart"):
            change(current, {spec.name: other}, configured=True)
        assert getattr(change(current, {spec.name: other}, configured=False), spec.name) == other


def test_setting_the_present_value_again_is_no_change() -> None:
    current = NodeParameters()
    assert change(current, dataclasses.asdict(current), configured=True, classes=2) == current


def test_a_rejected_change_names_every_mistake() -> None:
    with pytest.raises(ConfigurationError) as caught:
        change(
            NodeParameters(),
            {"bundle": "other", "entropy_threshold": 3.0, "stale_after_s": 5.0},
            configured=True,
            classes=11,
        )
    assert "bundle: is read when" in str(caught.value)
    assert "at most log(11)" in str(caught.value)
    assert "stale_after_s" not in str(caught.value)


def test_the_page_of_the_node_shows_the_parameters_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ros.md").read_text(encoding="utf-8")
    assert parameters_markdown() in page


def test_lists_of_texts_are_read_from_ros(context: Context) -> None:
    node = node_with(context, image_topics=["/a/image", "/b/image"])
    assert declare(node) == {}
    assert read(node).image_topics == ("/a/image", "/b/image")
    assert read(node).camera_names == ("",)
    described = node.describe_parameter("image_topics")
    assert described.type == ParameterType.PARAMETER_STRING_ARRAY


def test_a_text_where_a_list_belongs_is_named(context: Context) -> None:
    node = node_with(context, image_topics="/a/image")
    assert declare(node) == {
        "image_topics": "image_topics: expected list of str, got '/a/image'",
    }
    assert read(node) == NodeParameters()


def test_cameras_are_checked_with_the_rest() -> None:
    with pytest.raises(ConfigurationError, match="each topic once, got /a/image") as caught:
        change(
            NodeParameters(),
            {"image_topics": ["/a/image", "/a/image"], "threads": -1},
            configured=False,
        )
    assert "threads: expected int" in str(caught.value)


def test_topics_and_names_of_cameras_can_be_set_one_after_the_other() -> None:
    topics = {"image_topics": ["/a/color/image", "/b/color/image"]}
    halfway = change(NodeParameters(), topics, configured=False)
    assert "set camera_names to tell them apart" in find_mistakes(halfway)[0]
    done = change(halfway, {"camera_names": ["a", "b"]}, configured=False)
    assert find_mistakes(done) == []
    other_way = change(NodeParameters(), {"camera_names": ["a", "b"]}, configured=False)
    assert "one name for each of the 0 image_topics" in find_mistakes(other_way)[0]
    assert change(other_way, topics, configured=False) == done


def test_mistakes_made_at_the_start_are_put_right_one_after_the_other() -> None:
    start = NodeParameters(picture_sizes="1920*1080", latency_warn_ms=200.0, latency_error_ms=100.0)
    assert len(find_mistakes(start)) == 2
    renamed = change(start, {"bundle": "other"}, configured=False)
    sized = change(renamed, {"picture_sizes": "1920x1080"}, configured=False)
    done = change(sized, {"latency_error_ms": 300.0}, configured=False)
    assert find_mistakes(done) == []
    with pytest.raises(ConfigurationError, match="latency_error_ms: expected at least"):
        change(start, {"latency_error_ms": 150.0}, configured=False)
    with pytest.raises(ConfigurationError, match="picture_sizes"):
        change(start, {"latency_error_ms": 300.0, "picture_sizes": "large"}, configured=False)


def test_an_empty_list_is_as_good_as_none(context: Context) -> None:
    arguments = ["--ros-args", "-p", "image_topics:=[]", "-p", "threads:=[]"]
    node = Node("empty", context=context, cli_args=arguments)
    assert declare(node) == {"threads": "threads: expected int 0 .. 1024, got None"}
    assert read(node) == NodeParameters()
    assert node.describe_parameter("image_topics").description


def test_an_empty_list_for_a_parameter_that_never_changes(context: Context) -> None:
    spec = dataclasses.replace(PARAMETERS[0], name="fixed")
    node = Node("empty", context=context, cli_args=["--ros-args", "-p", "fixed:=[]"])
    mistake = declare_parameter(node, spec, read_only=True)
    assert mistake == "fixed: expected str, got None"
    assert node.get_parameter("fixed").value == spec.default
    assert node.describe_parameter("fixed").read_only
