# SPDX-License-Identifier: Apache-2.0
"""Play a bag through the node `segment` and report latencies, ages and drops.

    ros2 launch sparserefine_ros replay.launch.py bag:=/data/drive rate:=10

Everything stops when the bag ends; the report is printed, and written to `report` if given.
The executable `play_bag` of this package plays the bag. With `player:=rosbag2`, `ros2 bag play`
does, with the stamps as recorded and /clock; `rate` is then a multiple of the recorded speed.
"""

from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit, OnProcessIO
from launch.events import Shutdown
from launch.events.process import ProcessIO
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

PACKAGE = "sparserefine_ros"
IMAGE = "/replay/image"
# The node tells its counters once a second.
LAST_WORD_S = 3.0
# What the report logs once the node is active.
ACTIVE = b"the node is active"
# Seconds that the node has to end before it is asked once more, by SIGTERM.
STOP_S = "20"


def generate_launch_description() -> LaunchDescription:
    """Arguments, player, node and report."""
    arguments = [
        DeclareLaunchArgument("bag", description="Folder of the bag, or one .mcap or .db3 file."),
        DeclareLaunchArgument(
            "bundle",
            default_value="",
            description="Bundle folder, or the name of a shipped bundle; empty: the default.",
        ),
        DeclareLaunchArgument(
            "image_topic",
            default_value="",
            description="Topic of the pictures in the bag; empty: the only image topic, which "
            "rosbag2 as player does not look for.",
        ),
        DeclareLaunchArgument(
            "transport",
            default_value="raw",
            choices=["raw", "compressed"],
            description="Message type of that topic: Image or CompressedImage.",
        ),
        DeclareLaunchArgument(
            "rate", default_value="0.0", description="Pictures per second; 0.0: as recorded."
        ),
        DeclareLaunchArgument(
            "loop",
            default_value="false",
            choices=["true", "false"],
            description="Whether the bag starts again at its end, until you stop it.",
        ),
        DeclareLaunchArgument(
            "clock",
            default_value="false",
            choices=["true", "false"],
            description="Whether stamps stay as recorded and all nodes follow /clock.",
        ),
        DeclareLaunchArgument(
            "player",
            default_value="own",
            choices=["own", "rosbag2"],
            description="What plays the bag: this package, or ros2 bag play.",
        ),
        DeclareLaunchArgument(
            "report", default_value="", description="File for the report; empty: print it only."
        ),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[Action]:
    """The node and its listener, and the player, whose end stops everything."""
    names = ("bag", "bundle", "image_topic", "transport", "rate", "loop", "clock", "player")
    given = {name: LaunchConfiguration(name).perform(context) for name in (*names, "report")}
    rosbag2 = given["player"] == "rosbag2"
    if rosbag2 and not given["image_topic"]:
        raise ValueError(
            "image_topic: expected the topic of the pictures with player:=rosbag2, got none; "
            "`ros2 bag info` lists the topics of a bag"
        )
    sim_time = {"use_sim_time": rosbag2 or given["clock"] == "true"}
    bundle = {"bundle": ParameterValue(given["bundle"], value_type=str)} if given["bundle"] else {}
    segment = LifecycleNode(
        package=PACKAGE,
        executable="segment",
        name="segment",
        namespace="",
        output="screen",
        parameters=[{"transport": given["transport"], **sim_time, **bundle}],
        remappings=[("image", IMAGE)],
        sigterm_timeout=STOP_S,
    )
    report = Node(
        package=PACKAGE,
        executable="replay_report",
        output="screen",
        parameters=[{"report": ParameterValue(given["report"], value_type=str), **sim_time}],
    )
    player = bag_play(given) if rosbag2 else own_player(given)
    end = Ending()
    last_word = TimerAction(period=LAST_WORD_S, actions=[end("the bag has ended")])
    ends = [
        RegisterEventHandler(OnProcessExit(target_action=process, on_exit=[action]))
        for process, action in (
            (player, last_word),
            (segment, end("the node has ended")),
            (report, end("the report has ended")),
        )
    ]
    # Our own player waits for a subscriber, rosbag2's would play to nobody.
    begin = start_when_active(report, player) if rosbag2 else player
    return [*ends, segment, report, begin]


class Ending:
    """Makes actions that end everything: whichever comes first, for launch fails at a second."""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, reason: str) -> Action:
        """One for this reason."""
        return OpaqueFunction(function=self._end, args=[reason])

    def _end(self, context: LaunchContext, reason: str) -> list[Action]:
        if self._begun or context.is_shutdown:
            return []
        self._begun = True
        return [EmitEvent(event=Shutdown(reason=reason))]


def start_when_active(report: Node, player: Action) -> Action:
    """Start the player as soon as the report logs that the node is active."""
    waiting = [player]

    def look(event: ProcessIO) -> list[Action]:
        return [waiting.pop()] if waiting and ACTIVE in event.text else []

    return RegisterEventHandler(OnProcessIO(target_action=report, on_stderr=look))


def own_player(given: dict[str, str]) -> Node:
    """The player of this package."""
    return Node(
        package=PACKAGE,
        executable="play_bag",
        name="player",
        output="screen",
        parameters=[
            {
                "bag": ParameterValue(given["bag"], value_type=str),
                "image_topic": ParameterValue(given["image_topic"], value_type=str),
                "rate_hz": float(given["rate"]),
                "loop": given["loop"] == "true",
                "clock": given["clock"] == "true",
            }
        ],
        remappings=[("image", IMAGE)],
    )


def bag_play(given: dict[str, str]) -> ExecuteProcess:
    """`ros2 bag play` of rosbag2."""
    command = ["ros2", "bag", "play", given["bag"], "--clock"]
    if float(given["rate"]):
        command += ["--rate", given["rate"]]
    if given["loop"] == "true":
        command.append("--loop")
    command += ["--topics", given["image_topic"], "--remap", f"{given['image_topic']}:={IMAGE}"]
    return ExecuteProcess(cmd=command, output="screen")
