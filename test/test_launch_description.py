# SPDX-License-Identifier: Apache-2.0
"""The launch file with stand-ins for ROS's launch packages, so that it is read everywhere."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from sparserefine_ros.ros.parameters import PARAMETERS

ROOT = Path(__file__).parents[1]
MODULES = {
    "launch": ("LaunchContext", "LaunchDescription"),
    "launch.actions": ("DeclareLaunchArgument", "OpaqueFunction"),
    "launch.conditions": ("IfCondition",),
    "launch.substitutions": ("LaunchConfiguration", "PathJoinSubstitution"),
    "launch_ros": (),
    "launch_ros.actions": ("LifecycleNode", "Node"),
    "launch_ros.parameter_descriptions": ("ParameterValue",),
    "launch_ros.substitutions": ("FindPackageShare",),
}


class Recorded(SimpleNamespace):
    """What a class of launch was called with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(args=args, **options)


class Configuration(Recorded):
    """Looks a launch argument up in the context, a dict here."""

    def perform(self, context: Any) -> str:
        return str(context.given.get(self.args[0], ""))


@pytest.fixture
def launch_file(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names defined in the launch file."""
    for name, classes in MODULES.items():
        module = ModuleType(name)
        for each in classes:
            kind = Configuration if each == "LaunchConfiguration" else Recorded
            setattr(module, each, type(each, (kind,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    utilities = ModuleType("launch_ros.utilities")
    utilities.prefix_namespace = lambda base, name: "/".join(filter(None, (base, name)))  # type: ignore[attr-defined]
    utilities.make_namespace_absolute = lambda name: f"/{name.strip('/')}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "launch_ros.utilities", utilities)
    return runpy.run_path(str(ROOT / "launch" / "segment.launch.py"))


def start(launch_file: dict[str, Any], **given: str) -> tuple[Any, Any]:
    context = SimpleNamespace(given=given, launch_configurations={})
    return launch_file["start"](context)


def test_arguments_that_become_parameters_are_parameters(launch_file: dict[str, Any]) -> None:
    names = {spec.name for spec in PARAMETERS}
    assert {*launch_file["TEXTS"], *launch_file["LISTS"]} <= names
    *arguments, action = launch_file["generate_launch_description"]().args[0]
    declared = {argument.args[0]: argument for argument in arguments}
    assert action.function is launch_file["start"]
    read = {*launch_file["TEXTS"], *launch_file["LISTS"], *launch_file["OTHERS"]}
    assert set(declared) == {*read, "rviz"}
    for argument in arguments:
        assert argument.default_value is not None
        assert argument.description.rstrip().endswith(".")


def test_without_arguments_nothing_is_overridden(launch_file: dict[str, Any]) -> None:
    rviz, segment = start(launch_file)
    assert (segment.package, segment.executable) == ("sparserefine_ros", "segment")
    assert segment.parameters == []
    assert segment.remappings == []
    assert segment.ros_arguments == []
    assert all(source == target for source, target in rviz.remappings)


def test_given_arguments_reach_the_node(launch_file: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.touch()
    rviz, segment = start(
        launch_file,
        image_topics="[/front/image, /rear/image]",
        bundle="other",
        namespace="robot",
        params_file=str(own),
        use_sim_time="false",
        log_level="debug",
    )
    file, overrides = segment.parameters
    assert file == str(own)
    assert overrides["image_topics"] == ["/front/image", "/rear/image"]
    assert overrides["use_sim_time"] is False
    assert overrides["bundle"].args == ("other",)
    assert "device" not in overrides
    assert segment.ros_arguments == ["--log-level", "debug"]
    assert ("/segment/overlay", "/robot/segment/front/overlay") in rviz.remappings
    assert ("/image", "/front/image") in rviz.remappings


@pytest.mark.parametrize(
    ("namespace", "node"),
    [
        ("", "/**"),
        ("", "/*"),
        ("", "segment"),
        ("robot", "/robot/segment"),
        ("robot", "/**"),
        ("robot", "robot/*"),
        ("robot", "/**/segment"),
    ],
)
def test_rviz_looks_at_the_cameras_of_the_file(
    launch_file: dict[str, Any], tmp_path: Path, namespace: str, node: str
) -> None:
    own = tmp_path / "own.yaml"
    cameras = {"image_topics": ["/front/image", "/rear/image"], "camera_names": ["ahead", "back"]}
    others = {
        "other": {"ros__parameters": {"image_topics": ["/else"]}},
        "/rear": {"segment": {"ros__parameters": {"image_topics": ["/else"]}}},
        "empty": None,
        3: {"ros__parameters": None},
    }
    own.write_text(yaml.safe_dump({node: {"ros__parameters": cameras}, **others}))
    outputs = f"{namespace and '/'}{namespace}/segment/ahead/overlay"
    rviz, _ = start(launch_file, params_file=str(own), namespace=namespace)
    assert ("/segment/overlay", outputs) in rviz.remappings
    assert ("/image", "/front/image") in rviz.remappings
    given = {"namespace": namespace, "image_topics": "/left/image,"}
    rviz, _ = start(launch_file, params_file=str(own), **given)
    assert ("/image", "/left/image") in rviz.remappings
    assert ("/segment/overlay", outputs) in rviz.remappings


def test_cameras_of_another_node_are_not_looked_at(
    launch_file: dict[str, Any], tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    cameras = {"ros__parameters": {"image_topics": ["/else"]}}
    own.write_text(yaml.safe_dump({"segment": cameras, "/rear": {"segment": cameras}}))
    rviz, _ = start(launch_file, params_file=str(own), namespace="front", image="/image_raw")
    assert ("/image", "/image_raw") in rviz.remappings


def test_lists_that_are_not_set(launch_file: dict[str, Any]) -> None:
    """As in the file that ships, which users copy."""
    file = str(ROOT / "config" / "segment.yaml")
    rviz, _ = start(launch_file, params_file=file, image="/camera/image")
    assert ("/image", "/camera/image") in rviz.remappings
    assert ("/segment/overlay", "/segment/overlay") in rviz.remappings


@pytest.mark.parametrize("text", ["a: [", "[1, 2]", "segment: 3", "segment: {ros__parameters: 1}"])
def test_a_file_that_is_none(launch_file: dict[str, Any], tmp_path: Path, text: str) -> None:
    """The node says what is wrong with parameters; what is no YAML has no node."""
    own = tmp_path / "own.yaml"
    own.write_text(text)
    if text == "a: [":
        with pytest.raises(ValueError, match=r"params_file: expected YAML in .*own\.yaml"):
            start(launch_file, params_file=str(own))
    else:
        rviz, _ = start(launch_file, params_file=str(own))
        assert ("/image", "/image") in rviz.remappings


def test_the_files_named_are_installed(launch_file: dict[str, Any]) -> None:
    rviz, _ = start(launch_file)
    _, config = rviz.arguments
    package, *path = config.args[0]
    assert package.args == ("sparserefine_ros",)
    assert ROOT.joinpath(*path).is_file()


def test_a_file_of_parameters_must_be_there(launch_file: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="params_file: expected a YAML file"):
        start(launch_file, params_file=str(tmp_path / "own.yaml"))


def test_the_home_folder_may_be_written_short(
    launch_file: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").touch()
    _, segment = start(launch_file, params_file="~/own.yaml")
    assert segment.parameters == [str(tmp_path / "own.yaml")]
