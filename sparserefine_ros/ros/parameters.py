# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: the one source of names, defaults, ranges and descriptions.

`python -m sparserefine_ros.ros.parameters > config/segment.yaml` writes the parameter file;
with `--markdown` it prints the table of docs/ros.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from rclpy.node import Node

from sparserefine_ros.dense.options import PRECISIONS, parse_picture_sizes
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.ros.cameras import NOT_SET, find_list_mistakes, find_pairing_mistakes
from sparserefine_ros.ros.parameter_spec import (
    ParameterSpec,
    check_value,
    declare_parameter,
    from_ros,
)

V = TypeVar("V", bool, int, float, str, tuple[str, ...])

MAX_CLASSES: Final = 255


def _parameter(
    default: V,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    run_time: bool = False,
) -> V:
    spec = ParameterSpec("", default, description, minimum, maximum, choices, run_time)
    return dataclasses.field(default=default, metadata={"spec": spec})


@dataclass(frozen=True)
class NodeParameters:
    """The values of all parameters; each field is described by its entry."""

    bundle: str = _parameter("street_small", "Bundle folder, or the name of a bundle shipped here.")
    backend: str = _parameter(
        "auto",
        "Inference engine of the dense model: onnxruntime, onnxruntime_tensorrt, "
        "onnxruntime_tensorrt_rtx, openvino, tensorrt, tensorrt_rtx; auto "
        "chooses by device and says why in the log and the diagnostics.",
    )
    sparse_backend: str = _parameter(
        "auto",
        "Engine of the sparse refiner; auto takes triton-float16 on a GPU with Triton, else "
        "compiled-bfloat16 where the CPU has bfloat16, else compiled, else pytorch.",
    )
    device: str = _parameter(
        "cpu", "cpu, or a GPU such as cuda:0, for the dense model and sparse engines that need one."
    )
    dense_precision: str = _parameter(
        "model",
        "Arithmetic of the dense model: model keeps the number types of its file; fp16 is for "
        "the TensorRT backends, bf16 for openvino.",
        choices=PRECISIONS,
    )
    picture_sizes: str = _parameter(
        "",
        "Size of the camera's pictures such as 1920x1080, or the smallest, usual and largest such "
        "as 640x480,1920x1080,3840x2160; the TensorRT backends need it for bundles without a "
        "fixed input size.",
    )
    engine_cache: str = _parameter(
        "",
        "Folder of built TensorRT engines; empty for sparserefine_ros/engines in $XDG_CACHE_HOME "
        "or ~/.cache.",
    )
    build_engines: bool = _parameter(
        True,
        "Whether a TensorRT engine that is not in the cache is built when the node is configured; "
        "otherwise that is an error.",
    )
    threads: int = _parameter(
        0, "CPU threads of the models; 0: one per core.", minimum=0, maximum=1024
    )
    image_topics: tuple[str, ...] = _parameter(
        NOT_SET,
        "Topics of several cameras that share the model, such as "
        "[/front/image_raw, /rear/image_raw]; the outputs of each lie under its name, such as "
        '~/front/labels. [""]: one camera on the topic image.',
    )
    camera_names: tuple[str, ...] = _parameter(
        NOT_SET,
        "Names of the cameras of image_topics, in that order; "
        '[""]: each is named after its topic, front for /front/image_raw.',
    )
    max_batch: int = _parameter(
        1,
        "Frames of different cameras that the dense model takes at once, at most; it needs a free "
        "batch axis for more than 1. No result is published before the whole batch has passed it.",
        minimum=1,
        maximum=64,
    )
    transport: str = _parameter(
        "raw",
        "Message type of the pictures: raw for sensor_msgs/Image, "
        "compressed for sensor_msgs/CompressedImage.",
        choices=("raw", "compressed"),
    )
    image_reliability: str = _parameter(
        "best_effort",
        "Reliability of the subscriptions to the cameras; reliable receives from reliable cameras "
        "only.",
        choices=("best_effort", "reliable"),
    )
    output_reliability: str = _parameter(
        "reliable",
        "Reliability of the outputs; reliable serves both kinds of subscribers, best_effort does "
        "not wait for slow or distant ones.",
        choices=("best_effort", "reliable"),
    )
    max_image_megapixels: float = _parameter(
        64.0,
        "Larger pictures are rejected, before memory is spent on them.",
        minimum=0.001,
        maximum=1000.0,
    )
    entropy_threshold: float = _parameter(
        -1.0,
        "Pixels of a higher entropy, in nats, are refined; 0.0 to the logarithm of the number of "
        "classes. Only for bundles that select by entropy. -1.0: the bundle's value.",
        minimum=-1.0,
        maximum=math.log(MAX_CLASSES),
        run_time=True,
    )
    max_refined_pixels: int = _parameter(
        -1,
        "Most pixels of a frame that are refined, those the selector ranks highest; "
        "0: no limit; -1: the bundle's value.",
        minimum=-1,
        maximum=1_000_000_000,
        run_time=True,
    )
    latency_budget_ms: float = _parameter(
        0.0,
        "Deadline of a frame in ms, from its arrival to its publication: as many pixels are "
        "refined as fit, by what earlier frames took on this machine; 0.0: off.",
        minimum=0.0,
        maximum=3.6e6,
        run_time=True,
    )
    overlay_opacity: float = _parameter(
        0.5, "Opacity of the labels in the overlay.", minimum=0.0, maximum=1.0, run_time=True
    )
    latency_warn_ms: float = _parameter(
        0.0,
        "Diagnostics turn WARN when the median latency in ms from the arrival of a frame to its "
        "publication is above it; 0.0: off.",
        minimum=0.0,
        maximum=3.6e6,
        run_time=True,
    )
    latency_error_ms: float = _parameter(
        0.0,
        "Diagnostics turn ERROR when the median latency in ms is above it; 0.0: off.",
        minimum=0.0,
        maximum=3.6e6,
        run_time=True,
    )
    latency_error_after_s: float = _parameter(
        10.0,
        "Diagnostics turn ERROR when the median latency has been above latency_warn_ms for this "
        "many seconds without a break; 0.0: off.",
        minimum=0.0,
        maximum=86400.0,
        run_time=True,
    )
    stale_after_s: float = _parameter(
        2.0,
        "Diagnostics turn STALE when a camera has sent no frames for this many seconds; 0.0: off.",
        minimum=0.0,
        maximum=86400.0,
        run_time=True,
    )
    diagnostics_period_s: float = _parameter(
        1.0, "Seconds between two messages of diagnostics.", minimum=0.05, maximum=60.0
    )
    autostart: bool = _parameter(
        True, "Whether the node configures and activates itself when it starts."
    )


PARAMETERS: Final[tuple[ParameterSpec, ...]] = tuple(
    dataclasses.replace(field.metadata["spec"], name=field.name)
    for field in dataclasses.fields(NodeParameters)
)


def declare(node: Node) -> dict[str, str]:
    """Declare every parameter on `node`, with the values it was started with.

    A start value that does not fit is replaced by the default, so that the node comes up and can
    be given a better one; whole numbers are accepted for floating-point parameters.

    Returns:
        for each parameter with an unusable start value, what is wrong with it.
    """
    mistakes: dict[str, str] = {}
    for spec in PARAMETERS:
        mistake = declare_parameter(node, spec)
        if mistake:
            mistakes[spec.name] = mistake
    return mistakes


def undeclared(node: Node) -> list[str]:
    """Names of start values that no parameter of the node has."""
    # Values for all nodes come from files, too: a warning is due and no error.
    given = getattr(node, "_parameter_overrides", {})
    return sorted(
        name
        for name in given
        if not node.has_parameter(name) and not name.startswith("qos_overrides.")
    )


def read(node: Node) -> NodeParameters:
    """The declared parameters of `node` as they are now."""
    values = {spec.name: from_ros(node.get_parameter(spec.name).value) for spec in PARAMETERS}
    return NodeParameters(**values)  # type: ignore[arg-type]


def find_mistakes(
    parameters: NodeParameters,
    *,
    classes: int | None = None,
    selector: str | None = None,
    complete: bool = True,
) -> list[str]:
    """Everything that is wrong with `parameters`, one text for each mistake.

    Args:
        parameters: the values to check.
        classes: number of classes of the bundle; None while it is not known.
        selector: kind of the bundle's selector; None while it is not known.
        complete: whether all have their final values. `ros2 param set` sets one at a time, so
            that parameters read at configuration may contradict each other until then.
    """
    values = [(spec, getattr(parameters, spec.name)) for spec in PARAMETERS]
    mistakes = [text for spec, value in values if (text := check_value(spec, value))]
    try:
        parse_picture_sizes(parameters.picture_sizes)
    except ConfigurationError as err:
        mistakes.append(f"picture_sizes: {err}")
    cameras = parameters.image_topics, parameters.camera_names
    if all(isinstance(texts, tuple) for texts in cameras):
        found = find_list_mistakes(*cameras)
        mistakes += found or (find_pairing_mistakes(*cameras) if complete else [])
    threshold = parameters.entropy_threshold
    if -1.0 < threshold < 0.0:
        mistakes.append(f"entropy_threshold: expected -1.0 or at least 0.0 nats, got {threshold}")
    if classes is not None and threshold > math.log(classes):
        mistakes.append(
            f"entropy_threshold: expected at most log({classes}) = {math.log(classes):.4f} nats, "
            f"the highest entropy {classes} classes can have, got {threshold}"
        )
    if threshold >= 0.0 and selector not in (None, "entropy"):
        mistakes.append(
            f"entropy_threshold: expected -1.0 for a bundle that selects by {selector}, "
            f"got {threshold}"
        )
    warn_ms, error_ms = parameters.latency_warn_ms, parameters.latency_error_ms
    if 0.0 < error_ms < warn_ms:
        mistakes.append(
            f"latency_error_ms: expected at least latency_warn_ms = {warn_ms}, or 0.0 for off, "
            f"got {error_ms}"
        )
    return mistakes


def change(
    current: NodeParameters,
    changes: Mapping[str, object],
    *,
    configured: bool,
    classes: int | None = None,
    selector: str | None = None,
) -> NodeParameters:
    """`current` with `changes` applied, all of them or none.

    Args:
        current: the values now.
        changes: new values by name.
        configured: whether the node has read its parameters: then only those that change at run
            time may differ. Before, mistakes that `current` has too are put right one at a time.
        classes: number of classes of the bundle; None while it is not known.
        selector: kind of the bundle's selector; None while it is not known.

    Raises:
        ConfigurationError: the changes make no sense; the text lists every mistake.
    """
    changes = {name: from_ros(value) for name, value in changes.items()}
    mistakes = [
        f"{spec.name}: is read when the node is configured; to change it, clean the node up "
        "(deactivate, cleanup), set it and configure again, or restart the node with the new value"
        for spec in PARAMETERS
        if configured
        and not spec.run_time
        and changes.get(spec.name, getattr(current, spec.name)) != getattr(current, spec.name)
    ]
    changed = NodeParameters(**(dataclasses.asdict(current) | changes))
    known = [] if configured else find_mistakes(current, complete=False)
    found = find_mistakes(changed, classes=classes, selector=selector, complete=configured)
    mistakes += [text for text in found if text not in known]
    if mistakes:
        raise ConfigurationError("; ".join(mistakes))
    return changed


def parameters_yaml() -> str:
    """Content of `config/segment.yaml`: every parameter with its default and description."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        "# Parameters of the node `segment` with their defaults. Written by",
        "# `python -m sparserefine_ros.ros.parameters`; keep your own values in another file.",
        "/**:",
        "  ros__parameters:",
    ]
    for spec in PARAMETERS:
        notes = [spec.description]
        if spec.constraints:
            notes.append(f"{spec.constraints}.")
        if spec.run_time:
            notes.append("Changes at run time.")
        lines += textwrap.wrap(
            " ".join(notes),
            98,
            initial_indent="    # ",
            subsequent_indent="    # ",
            break_on_hyphens=False,
        )
        lines.append(f"    {spec.name}: {json.dumps(spec.default)}")
    return "\n".join(lines) + "\n"


def parameters_markdown() -> str:
    """The table of parameters in docs/ros.md."""
    lines = ["| parameter | default | meaning |", "| --- | --- | --- |"]
    for spec in PARAMETERS:
        notes = [spec.description]
        if spec.constraints:
            notes.append(f"{spec.constraints}.")
        if spec.run_time:
            notes.append("*Changes at run time.*")
        lines.append(f"| `{spec.name}` | `{json.dumps(spec.default)}` | {' '.join(notes)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(parameters_markdown() if "--markdown" in sys.argv else parameters_yaml())
