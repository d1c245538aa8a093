# SPDX-License-Identifier: Apache-2.0
"""A bag played through the real node in real time: player and node as processes of their own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from tqdm import tqdm

from sparserefine_ros.bags.library import IMAGE
from sparserefine_ros.bags.reader import Bag
from sparserefine_ros.bags.topics import choose_image_topic
from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.ros.middleware import configure_middleware
from sparserefine_ros.ros.parameters import PARAMETERS
from sparserefine_ros.ros.processes import NodeProcess, isolate, start_node
from sparserefine_ros.ros.replay_report import ReplayListener, ReplayReport
from sparserefine_ros.ros.stopping import init_for_command
from sparserefine_ros.ros.watching import spin_until, wait_until_active

# Diagnostics come once a second.
_LAST_DIAGNOSTICS: Final = 3
# The replay sets these itself, or relies on what they are.
_OWN: Final = {
    "autostart", "bundle", "camera_names", "diagnostics_period_s", "image_topics", "transport",
}  # fmt: skip
_SETTABLE: Final = {spec.name for spec in PARAMETERS} - _OWN
_REMAPS: Final = {"image": "/replay/image"}


@dataclass(frozen=True)
class ReplayOptions:
    """How a bag is played.

    Attributes:
        image_topic: the pictures; None for the only image topic.
        rate_hz: pictures per second; 0 as recorded.
        seconds: ends after so long; 0 for the whole bag.
        loop: whether it starts again at its end; needs `seconds`.
        clock: whether stamps stay as recorded and the node follows /clock.
        parameters: more of the node's, NAME:=VALUE each, as ROS takes them.

    Raises:
        ConfigurationError: a negative number, an endless replay, or no such parameter.
    """

    image_topic: str | None = None
    rate_hz: float = 0.0
    seconds: float = 0.0
    loop: bool = False
    clock: bool = False
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate_hz), ("time", self.seconds)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigurationError(f"expected a {name} of 0 or more, got {value}")
        if self.loop and not self.seconds:
            raise ConfigurationError("expected an end for a bag that is looped; give --seconds")
        for text in self.parameters:
            name, given, _ = text.partition(":=")
            if not given:
                raise ConfigurationError(f"expected NAME:=VALUE, got {text!r}")
            if name not in _SETTABLE:
                raise ConfigurationError(
                    f"expected a parameter of the node, got {name!r}; docs/ros.md lists them, "
                    f"those of the replay itself ({', '.join(sorted(_OWN))}) have options of "
                    "their own or stay as they are"
                )

    @property
    def settings(self) -> Mapping[str, str]:
        """The parameters by name."""
        return dict(text.split(":=", 1) for text in self.parameters)


def replay_bag(path: Path, bundle: str, options: ReplayOptions) -> ReplayReport:
    """Play a bag through a segmentation node and tell what became of the pictures.

    Ctrl-C ends it early, with what is known by then.

    Args:
        path: the bag.
        bundle: folder or shipped name.
        options: how it is played.

    Raises:
        SparseRefineError: bag or bundle cannot be used, or a node failed.
    """
    opened = Bundle.named(bundle)
    with Bag(path) as bag:
        topic = choose_image_topic(bag, options.image_topic)
        transport = "raw" if bag.types[topic] == IMAGE else "compressed"
        # As far as the end is that of the bag.
        total = None if options.seconds else bag.announced.get(topic)
    player: dict[str, str | int | float | bool] = {
        "bag": str(path.resolve()),
        "image_topic": topic,
        "rate_hz": options.rate_hz,
        "seconds": options.seconds,
        "loop": options.loop,
        "clock": options.clock,
        "counted": True,
    }
    isolate()
    configure_middleware()
    init_for_command()
    try:
        sim_time = Parameter("use_sim_time", value=options.clock)
        listener = ReplayListener(parameter_overrides=[sim_time])
        try:
            with start_node(
                "sparserefine_ros.ros.segment",
                parameters={
                    "bundle": str(opened.folder.resolve()),
                    "transport": transport,
                    "use_sim_time": options.clock,
                    **options.settings,
                },
                remaps=_REMAPS,
            ) as segment:
                _play(listener, segment, player, total)
        finally:
            listener.destroy_node()
        return listener.report()
    finally:
        rclpy.try_shutdown()


def _play(
    listener: ReplayListener,
    segment: NodeProcess,
    settings: Mapping[str, str | int | float | bool],
    total: int | None,
) -> None:
    executor, status = SingleThreadedExecutor(), listener.status
    executor.add_node(listener)
    wait_until_active(executor, status, segment)
    with (
        tqdm(total=total, unit="frame", desc="playing") as bar,
        start_node("sparserefine_ros.ros.player", parameters=settings, remaps=_REMAPS) as player,
        contextlib.suppress(KeyboardInterrupt),  # what has been measured by then is told
    ):

        def ended() -> bool:
            bar.update(listener.received - bar.n)
            return player.exit_code is not None

        spin_until(executor, ended, math.inf, segment)
        if player.exit_code != 0:
            player.check_running()
    told = status.messages
    spin_until(executor, lambda: status.messages >= told + _LAST_DIAGNOSTICS, 10.0, segment)
    executor.shutdown()
