# SPDX-License-Identifier: Apache-2.0
"""The launch description, started for real with stand-ins that write down their arguments."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCH_FILE = ROOT / "launch" / "segment.launch.py"
RECORDER = """#!{python}
import json, pathlib, sys
files = [sys.argv[i + 1] for i, text in enumerate(sys.argv) if text == "--params-file"]
record = {{"arguments": sys.argv[1:], "files": [[f, pathlib.Path(f).read_text()] for f in files]}}
pathlib.Path(sys.argv[0] + ".json").write_text(json.dumps(record))
"""

pytest.importorskip("launch_ros", reason="launch_ros is not installed (it is not on PyPI)")


def add_package(prefix: Path, name: str) -> Path:
    """An installed package with a recorder as executable; returns the recorder's record."""
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True, exist_ok=True)
    (index / name).touch()
    (prefix / "share" / name).mkdir()
    program = prefix / "lib" / name / {"sparserefine_ros": "segment"}.get(name, name)
    program.parent.mkdir(parents=True)
    program.write_text(RECORDER.format(python=sys.executable))
    program.chmod(0o755)
    return program.with_name(f"{program.name}.json")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where the stand-ins of both packages leave what they were given."""
    made = {name: add_package(tmp_path, name) for name in ("sparserefine_ros", "rviz2")}
    (tmp_path / "share" / "sparserefine_ros" / "config").symlink_to(ROOT / "config")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    monkeypatch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    return made


def launch_description() -> Any:
    spec = importlib.util.spec_from_file_location("segment_launch", LAUNCH_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


def start(records: dict[str, Path], *before: Any, **arguments: str) -> dict[str, Any]:
    """Launch with these arguments, after the actions `before` in the same group.

    Returns what the executable `segment` was given.
    """
    from launch import LaunchDescription, LaunchService
    from launch.actions import GroupAction, IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    service = LaunchService(noninteractive=True)
    source = PythonLaunchDescriptionSource(str(LAUNCH_FILE))
    include = IncludeLaunchDescription(source, launch_arguments=arguments.items())
    service.include_launch_description(LaunchDescription([GroupAction([*before, include])]))
    assert service.run() == 0
    return json.loads(records["sparserefine_ros"].read_text())


def parameters(record: dict[str, Any]) -> dict[str, Any]:
    """What the parameter files set."""
    values: dict[str, Any] = {}
    for _, text in record["files"]:
        # launch_ros writes lists as tuples, with a tag that rcl's parser passes over.
        for section in yaml.safe_load(text.replace("!!python/tuple", "")).values():
            values |= section["ros__parameters"]
    return values


def remaps(record: dict[str, Any]) -> set[str]:
    words = record["arguments"]
    return {words[i + 1] for i, word in enumerate(words) if word == "-r"}


def test_without_arguments_the_node_s_own_defaults_count(records: dict[str, Path]) -> None:
    record = start(records)
    assert record["files"] == []
    assert remaps(record) == {"__node:=segment", "__ns:=/"}
    assert "--log-level" not in record["arguments"]
    assert not records["rviz2"].exists()


def test_arguments_override(records: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("/**:\n  ros__parameters:\n    threads: 3\n")
    record = start(
        records,
        bundle="123",
        device="cuda:0",
        image="/front/image_raw",
        namespace="robot",
        params_file=str(own),
        log_level="debug",
    )
    assert record["files"][0][1] == own.read_text()
    assert parameters(record) == {"threads": 3, "bundle": "123", "device": "cuda:0"}
    expected = {"__node:=segment", "__ns:=/robot", "image:=/front/image_raw"}
    assert remaps(record) == expected
    words = record["arguments"]
    assert words[words.index("--log-level") + 1] == "debug"


@pytest.mark.parametrize("text", ["[/front/image, /rear/image]", "/front/image,/rear/image"])
def test_several_cameras_become_parameters(records: dict[str, Path], text: str) -> None:
    record = start(records, image_topics=text, camera_names="[ahead, behind]", use_sim_time="true")
    assert parameters(record) == {
        "image_topics": ["/front/image", "/rear/image"],
        "camera_names": ["ahead", "behind"],
        "use_sim_time": True,
    }


@pytest.mark.parametrize("text", ["[]", "[1, 2]", "[[a], b]"])
def test_a_list_that_is_none_is_refused(text: str) -> None:
    from launch import LaunchContext

    context = LaunchContext()
    for argument in launch_description().get_launch_arguments():
        argument.execute(context)
    context.launch_configurations["image_topics"] = text
    with pytest.raises(ValueError, match="image_topics: expected a list of texts"):
        launch_description().entities[-1].execute(context)


def test_it_follows_the_launch_file_that_includes_it(records: dict[str, Path]) -> None:
    from launch_ros.actions import PushROSNamespace, SetParameter, SetRemap

    record = start(
        records,
        PushROSNamespace("fleet"),
        SetRemap("segment/labels", "/map/labels"),
        SetParameter("use_sim_time", True),
        SetParameter("max_batch", 2),
        namespace="robot",
        rviz="true",
    )
    assert {"__ns:=/fleet/robot", "segment/labels:=/map/labels"} <= remaps(record)
    assert "use_sim_time:=True" in record["arguments"] or parameters(record)["use_sim_time"] is True
    # A file behind it would win.
    assert "max_batch:=2" in record["arguments"]
    assert record["files"] == []
    shown = remaps(json.loads(records["rviz2"].read_text()))
    assert "/segment/overlay:=/fleet/robot/segment/overlay" in shown
    assert "/image:=/fleet/robot/image" in shown


@pytest.mark.parametrize(
    ("arguments", "image", "overlay"),
    [
        ({}, "/image", "/segment/overlay"),
        ({"namespace": "a/b"}, "/a/b/image", "/a/b/segment/overlay"),
        ({"namespace": "/a", "image": "cam"}, "/a/cam", "/a/segment/overlay"),
        ({"namespace": "a", "image": "/cam"}, "/cam", "/a/segment/overlay"),
        ({"image_topics": "[/x/image, /y/image]"}, "/x/image", "/segment/x/overlay"),
        (
            {"image_topics": "[/x/image, /y/image]", "camera_names": "[p, q]", "namespace": "a"},
            "/x/image",
            "/a/segment/p/overlay",
        ),
    ],
)
def test_rviz_looks_at_the_topics_of_the_node(
    records: dict[str, Path], arguments: dict[str, str], image: str, overlay: str
) -> None:
    start(records, rviz="true", **arguments)
    record = json.loads(records["rviz2"].read_text())
    words = record["arguments"]
    config = Path(words[words.index("-d") + 1])
    displays = yaml.safe_load(config.read_text())["Visualization Manager"]["Displays"]
    shown = {display["Topic"]["Value"] for display in displays}
    assert shown == {"/image", *(f"/segment/{name}" for name in ("overlay", "entropy", "refined"))}
    assert {f"/image:={image}", f"/segment/overlay:={overlay}"} <= remaps(record)
    assert {text.split(":=")[0] for text in remaps(record)} == shown
