# SPDX-License-Identifier: Apache-2.0
"""The launch description of a replay, started for real with stand-ins for the executables."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

LAUNCH_FILE = Path(__file__).parents[1] / "launch" / "replay.launch.py"
ARGUMENTS = {
    "bag", "bundle", "image_topic", "transport", "rate", "loop", "clock", "player", "report",
}  # fmt: skip
# Writes down its arguments; but for the player, it then runs until it is interrupted.
STAND_IN = """#!{python}
import json, pathlib, signal, sys
files = [pathlib.Path(sys.argv[i + 1]).read_text()
         for i, text in enumerate(sys.argv) if text == "--params-file"]
record = {{"arguments": sys.argv[1:], "files": files}}
pathlib.Path(sys.argv[0] + ".json").write_text(json.dumps(record))
if {says!r}:
    print({says!r}, file=sys.stderr, flush=True)
if {waits}:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    signal.pause()
"""

pytest.importorskip("launch_ros", reason="launch_ros is not installed (it is not on PyPI)")


def description() -> Any:
    spec = importlib.util.spec_from_file_location("replay_launch", LAUNCH_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


def stand_in(path: Path, *, waits: bool, says: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(python=sys.executable, waits=waits, says=says))
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the package's executables, which are stand-ins."""
    index = tmp_path / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True)
    (index / "sparserefine_ros").touch()
    folder = tmp_path / "lib" / "sparserefine_ros"
    stand_in(folder / "segment", waits=True)
    stand_in(folder / "play_bag", waits=False)
    stand_in(folder / "replay_report", waits=True, says="[INFO] the node is active")
    stand_in(tmp_path / "bin" / "ros2", waits=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    monkeypatch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    return folder


def launch(**arguments: str) -> None:
    from launch import LaunchDescription, LaunchService
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    service = LaunchService(noninteractive=True)
    source = PythonLaunchDescriptionSource(str(LAUNCH_FILE))
    include = IncludeLaunchDescription(source, launch_arguments=arguments.items())
    service.include_launch_description(LaunchDescription([include]))
    assert service.run() == 0


def given(program: Path) -> tuple[list[str], dict[str, Any]]:
    """Arguments and parameters that a stand-in was started with."""
    record = json.loads(program.with_name(f"{program.name}.json").read_text())
    parameters: dict[str, Any] = {}
    for text in record["files"]:
        for section in yaml.safe_load(text).values():
            parameters.update(section["ros__parameters"])
    return record["arguments"], parameters


def test_every_argument_has_a_description() -> None:
    arguments = description().get_launch_arguments()
    assert {argument.name for argument in arguments} == ARGUMENTS
    for argument in arguments:
        assert ". " in f"{argument.description} ", f"{argument.name} needs a sentence"
        optional = argument.default_value is not None
        assert optional == (argument.name != "bag")


def test_the_end_of_the_bag_ends_everything(programs: Path) -> None:
    launch(bag="/data/a b", rate="12", report="/tmp/r.json")
    words, parameters = given(programs / "play_bag")
    assert parameters == {
        "bag": "/data/a b", "image_topic": "", "rate_hz": 12.0, "loop": False, "clock": False,
    }  # fmt: skip
    assert {"__node:=player", "image:=/replay/image"} <= set(words)
    words, parameters = given(programs / "segment")
    assert parameters == {"transport": "raw", "use_sim_time": False}
    assert {"__node:=segment", "image:=/replay/image"} <= set(words)
    assert given(programs / "replay_report")[1] == {"report": "/tmp/r.json", "use_sim_time": False}


def test_rosbag2_is_told_the_topic() -> None:
    from launch import LaunchContext

    context = LaunchContext()
    for argument in description().get_launch_arguments():
        if argument.name != "bag":
            argument.execute(context)
    context.launch_configurations.update(bag="/data/a", player="rosbag2")
    with pytest.raises(ValueError, match="image_topic: expected the topic of the pictures"):
        description().entities[-1].execute(context)


def test_the_player_of_rosbag2(programs: Path) -> None:
    launch(
        bag="/data/a",
        player="rosbag2",
        rate="0.5",
        loop="true",
        image_topic="/cam",
        transport="compressed",
        bundle="mine",
    )
    words, _ = given(programs.parents[1] / "bin" / "ros2")
    assert words == [
        "bag", "play", "/data/a", "--clock", "--rate", "0.5", "--loop", "--topics", "/cam",
        "--remap", "/cam:=/replay/image",
    ]  # fmt: skip
    expected = {"transport": "compressed", "use_sim_time": True, "bundle": "mine"}
    assert given(programs / "segment")[1] == expected


def test_rosbag2_waits_for_the_node(programs: Path) -> None:
    stand_in(programs / "replay_report", waits=True)
    stand_in(programs / "segment", waits=False)  # it ends, and with it everything
    launch(bag="/data/a", player="rosbag2", image_topic="/cam")
    assert not (programs.parents[1] / "bin" / "ros2.json").exists()


@pytest.mark.parametrize("ends", ["segment", "replay_report"])
def test_without_node_or_report_there_is_no_replay(programs: Path, ends: str) -> None:
    stand_in(programs / "play_bag", waits=True)
    stand_in(programs / ends, waits=False)
    launch(bag="/data/a")
    assert (programs / "replay_report.json").exists()
