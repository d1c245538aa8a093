# SPDX-License-Identifier: Apache-2.0
"""What importing the package costs: no ROS and no engine until one is chosen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sparserefine_ros

PACKAGE = Path(sparserefine_ros.__file__).parent
ENGINES = (
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_bindings",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "triton",
    "torchsparse",
    "spconv",
)
HEAVY = (*ENGINES, "rclpy", "accelerate", "tensorboard", "transformers", "rosbags", "rerun")
ROS = ("rclpy", "sensor_msgs", "diagnostic_msgs", "lifecycle_msgs", "std_msgs", "rcl_interfaces")


# Rooms at the rim: ROS, and kernels in the language of an engine.
RIM = {"ros", "triton_kernels"}


def core_modules() -> list[str]:
    """Every module outside the rim."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if RIM.isdisjoint(parts[1:]):
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


def run(code: str) -> str:
    """Run code in a fresh interpreter that finds the package under test."""
    preamble = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module", ["sparserefine_ros", "sparserefine_ros.pipeline", "sparserefine_ros.cli"]
)
def test_importing_pulls_in_no_ros_and_no_engine(module: str) -> None:
    code = f"import json, {module}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run(code))
    assert module in loaded
    assert [name for name in loaded if name.split(".")[0] in (*HEAVY, *ROS)] == []


@pytest.mark.parametrize("module", ["sparserefine_ros", "sparserefine_ros.cli"])
def test_the_command_line_starts_without_torch(module: str) -> None:
    loaded = json.loads(run(f"import json, {module}; print(json.dumps(sorted(sys.modules)))"))
    assert "torch" not in loaded


def test_every_core_module_imports_without_ros_and_engines() -> None:
    modules = core_modules()
    engines = {f"sparserefine_ros.dense.{name}" for name in ("onnxruntime", "openvino", "tensorrt")}
    assert {"sparserefine_ros.pipeline", *engines} <= set(modules)
    code = f"""
import importlib, json
for missing in {(*HEAVY, *ROS)!r}:
    sys.modules[missing] = None
for module in {modules!r}:
    importlib.import_module(module)
print(json.dumps(sorted(name for name in sys.modules if name.startswith("sparserefine_ros"))))
"""
    loaded = json.loads(run(code))
    assert set(modules) <= set(loaded)
    assert not [name for name in loaded if not RIM.isdisjoint(name.split(".")[1:])]
