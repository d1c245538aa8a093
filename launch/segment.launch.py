# SPDX-License-Identifier: Apache-2.0
"""Start the node `segment`, and RViz when asked.

An argument left empty overrides nothing: defaults live in the parameter file and the node alone.
The node is a lifecycle node that configures and activates itself, see its parameter `autostart`.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "sparserefine_ros"
NODE = "segment"
OUTPUTS = ("overlay", "entropy", "refined")


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
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node."),
        DeclareLaunchArgument(
            "params_file",
            default_value=installed("config", "segment.yaml"),
            description="YAML file with the node's parameters.",
        ),
        DeclareLaunchArgument(
            "device",
            default_value="",
            description="Where the models run, such as cpu or cuda:0; empty: as in params_file.",
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
    given = {
        name: LaunchConfiguration(name).perform(context)
        for name in ("bundle", "image", "namespace", "device", "log_level")
    }
    overrides = {
        name: ParameterValue(given[name], value_type=str)
        for name in ("bundle", "device")
        if given[name]
    }
    segment = LifecycleNode(
        package=PACKAGE,
        executable=NODE,
        name=NODE,
        namespace=given["namespace"],
        output="screen",
        parameters=[LaunchConfiguration("params_file"), *([overrides] if overrides else [])],
        remappings=[("image", given["image"])] if given["image"] else [],
        ros_arguments=["--log-level", given["log_level"]] if given["log_level"] else [],
    )
    # The RViz configuration names the topics of a node without namespace.
    namespace = f"/{given['namespace'].strip('/')}".rstrip("/")
    image = (
        given["image"]
        if given["image"].startswith("/")
        else f"{namespace}/{given['image'] or 'image'}"
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", installed("config", "segment.rviz")],
        remappings=[
            ("/image", image),
            *((f"/{NODE}/{output}", f"{namespace}/{NODE}/{output}") for output in OUTPUTS),
        ],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    return [segment, rviz]
