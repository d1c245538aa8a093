# SPDX-License-Identifier: Apache-2.0
"""Start the node `segment`, and RViz when asked.

An argument left empty overrides nothing: defaults live in the node alone; config/segment.yaml lists
them.
The node is a lifecycle node that configures and activates itself, see its parameter `autostart`.
Included in another launch file, the node follows that file's namespaces (PushROSNamespace), remaps
(SetRemap) and parameters (SetParameter), but for what is given here or in params_file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

PACKAGE = "sparserefine_ros"
NODE = "segment"
OUTPUTS = ("overlay", "entropy", "refined")
# Seconds from Ctrl-C until the node is asked once more, by SIGTERM.
STOP_S = "20"
# Arguments that become parameters of the node when they are given.
TEXTS = ("bundle", "transport", "device")
LISTS = ("image_topics", "camera_names")
OTHERS = ("params_file", "image", "namespace", "use_sim_time", "log_level")


def installed(*path: str) -> PathJoinSubstitution:
    """Path of a file that the package installs."""
    return PathJoinSubstitution([FindPackageShare(PACKAGE), *path])


def generate_launch_description() -> LaunchDescription:
    """Arguments, the node and RViz."""
    arguments = [
        DeclareLaunchArgument(
            "bundle",
            default_value="",
            description="Bundle folder, or the name of a shipped bundle; empty: as in params_file.",
        ),
        DeclareLaunchArgument(
            "image",
            default_value="",
            description="Topic of the camera's pictures; empty: image in the node's namespace.",
        ),
        DeclareLaunchArgument(
            "transport",
            default_value="",
            choices=["", "raw", "compressed"],
            description="Message type of these topics: Image or CompressedImage; empty: as in "
            "params_file.",
        ),
        DeclareLaunchArgument(
            "image_topics",
            default_value="",
            description="Topics of several cameras instead, as '[/front/image_raw, "
            "/rear/image_raw]'; empty: as in params_file.",
        ),
        DeclareLaunchArgument(
            "camera_names",
            default_value="",
            description="Names of these cameras, as '[front, rear]'; empty: as in params_file.",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node."),
        DeclareLaunchArgument(
            "params_file",
            default_value="",
            description="YAML file with the node's parameters, such as a changed copy of "
            "config/segment.yaml; empty: the defaults.",
        ),
        DeclareLaunchArgument(
            "device",
            default_value="",
            description="Where the models run, such as cpu or cuda:0; empty: as in params_file.",
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="",
            choices=["", "true", "false"],
            description="Whether the time comes from the topic /clock; empty: as it is otherwise.",
        ),
        DeclareLaunchArgument(
            "rviz",
            default_value="false",
            choices=["true", "false"],
            description="Whether to start RViz with camera, overlay, entropy and refined pixels.",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="",
            description="Least severity to log: debug, info, warn, error or fatal; empty: info.",
        ),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[Node]:
    """The node with what was given on the command line, and RViz looking at its topics."""
    given = {name: LaunchConfiguration(name).perform(context) for name in (*TEXTS, *LISTS, *OTHERS)}
    file = Path(given["params_file"]).expanduser()
    if given["params_file"] and not file.is_file():
        raise ValueError(
            f"params_file: expected a YAML file with parameters, found none at {file}; copy "
            "config/segment.yaml and change it"
        )
    overrides = {
        **{name: ParameterValue(given[name], value_type=str) for name in TEXTS if given[name]},
        **{name: read_list(name, given[name]) for name in LISTS if given[name]},
        **sim_time(given["use_sim_time"]),
    }
    segment = LifecycleNode(
        package=PACKAGE,
        executable=NODE,
        name=NODE,
        namespace=given["namespace"],
        output="screen",
        # Files come after SetParameter's values and win: an empty one must not be there.
        parameters=[each for each in (given["params_file"] and str(file), overrides) if each],
        remappings=[("image", given["image"])] if given["image"] else [],
        # PyTorch alone takes seconds to unload on a busy machine.
        sigterm_timeout=STOP_S,
        ros_arguments=["--log-level", given["log_level"]] if given["log_level"] else [],
    )
    pushed = context.launch_configurations.get("ros_namespace")
    namespace = make_namespace_absolute(prefix_namespace(pushed, given["namespace"])) or "/"
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", installed("config", "segment.rviz")],
        parameters=[sim_time(given["use_sim_time"])] if given["use_sim_time"] else [],
        remappings=rviz_remaps(
            namespace.rstrip("/"), given["image"], **cameras(given, namespace, file)
        ),
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    # RViz first: where it is not installed that is an error, and nothing runs yet.
    return [rviz, segment]


def sim_time(given: str) -> dict[str, bool]:
    """The parameter use_sim_time, when it was given."""
    return {"use_sim_time": given == "true"} if given else {}


def read_list(name: str, text: str) -> list[str]:
    """A list of texts as YAML writes it, or with nothing but commas."""
    value = yaml.safe_load(text if text.lstrip().startswith("[") else f"[{text}]")
    if not value or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name}: expected a list of texts, as '[front, rear]', got {text!r}")
    return value


def cameras(given: dict[str, str], namespace: str, file: Path) -> dict[str, list[str]]:
    """Topics and names of several cameras, as given or else as in the file; empty for one."""
    found: dict[str, list[str]] = {name: [] for name in LISTS}
    try:
        content = yaml.safe_load(file.read_text()) if given["params_file"] else None
    except (yaml.YAMLError, ValueError) as err:
        raise ValueError(f"params_file: expected YAML in {file}: {err}") from err
    for node, parameters in nodes_of(content):
        if fits(node, f"{namespace.rstrip('/')}/{NODE}"):
            lists = {name: parameters.get(name) for name in LISTS}
            # An entry without text is a list that is not set.
            found |= {
                name: [text for text in value if text]
                for name, value in lists.items()
                if isinstance(value, list)
            }
    return found | {name: read_list(name, given[name]) for name in LISTS if given[name]}


def nodes_of(content: object, name: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """Names of nodes in a file with parameters, which may be nested, and the parameters of each."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key != "ros__parameters":
            yield from nodes_of(value, f"{name}/{str(key).strip('/')}")
        elif isinstance(value, dict):
            yield name, value


def fits(pattern: str, node: str) -> bool:
    """Whether a name of a file with parameters, * for one part and ** for any, is of a node."""
    parts = {"*": "/[^/]+", "**": "(/[^/]+)*"}
    expression = "".join(parts.get(each, f"/{re.escape(each)}") for each in pattern[1:].split("/"))
    return re.fullmatch(expression, node) is not None


def rviz_remaps(
    namespace: str, image: str, image_topics: list[str], camera_names: list[str]
) -> list[tuple[str, str]]:
    """From the topics in RViz's configuration, those of a node without namespace and with one
    camera, to the topics of this node; of several cameras the first is shown."""
    image, outputs = image or "image", f"{namespace}/{NODE}"
    if image_topics:
        image = image_topics[0]
        outputs += f"/{camera_names[0] if camera_names else camera_name(image)}"
    image = image if image.startswith("/") else f"{namespace}/{image}"
    return [
        ("/image", image),
        *((f"/{NODE}/{output}", f"{outputs}/{output}") for output in OUTPUTS),
    ]


def camera_name(topic: str) -> str:
    """The name that the node gives to the camera of a topic."""
    from sparserefine_ros.ros.cameras import name_of_topic

    return name_of_topic(topic)
