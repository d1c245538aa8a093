# SPDX-License-Identifier: Apache-2.0
"""Settings without which large images are lost, or slow, between processes.

Fast DDS, the usual ROS middleware, passes messages through a shared memory segment of each
publishing process. Best-effort messages larger than the segment, 512 kB by default, vanish without
an error; `config/fastdds.xml` enlarges it. It counts on the side that publishes: a camera driver of
another package needs it as well.

The memory of a message, and that of every large array of a frame, comes from the heap and goes
back after use. Unless told otherwise the heap returns it to the operating system each time, and the
fresh pages of the next frame cost more than its transport.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from sparserefine_ros.resources import share_folder

# ROS 2 distributions with Fast DDS 2, which goes by another name; later ones have Fast DDS 3.
_WITH_FAST_DDS_2: Final = ("humble", "iron", "jazzy")
TRANSPORTS_VARIABLE: Final = "FASTDDS_BUILTIN_TRANSPORTS"
TOP_PAD_VARIABLE: Final = "MALLOC_TOP_PAD_"
HEAP_RESERVE: Final = 64 << 20

# Parameters of mallopt(3). The reserve alone would do harm: setting it freezes the size above which
# each array is mapped, and faulted in, afresh at 128 kB; and only the main arena keeps a reserve.
_HEAP_SETTINGS: Final = {
    -2: HEAP_RESERVE,  # M_TOP_PAD
    -1: 512 << 20,  # M_TRIM_THRESHOLD
    -3: 32 << 20,  # M_MMAP_THRESHOLD, the largest value glibc takes
    -8: 1,  # M_ARENA_MAX
}
_SHARED_MEMORY: Final = Path("/dev/shm")
# Besides its segment a participant needs small ports and semaphores.
_PORTS_BYTES: Final = 1 << 20


def profile_names() -> tuple[str, str]:
    """The environment variable and the file by which this Fast DDS finds a profile."""
    library = "FASTRTPS" if os.environ.get("ROS_DISTRO") in _WITH_FAST_DDS_2 else "FASTDDS"
    return f"{library}_DEFAULT_PROFILES_FILE", f"DEFAULT_{library}_PROFILES.xml"


def configure_middleware() -> str:
    """Prepare this process and its children for large images; call it before rclpy.init().

    What the user has set always wins: another RMW_IMPLEMENTATION, a Fast DDS profile or a choice
    of transports. Without room for the segment in /dev/shm nothing is set either, since Fast DDS
    would then run without shared memory at all.

    Returns:
        One line for the log: what was set, or why not and what to do.
    """
    return f"middleware: {_set_profile()}; heap: {_set_heap_reserve()}"


def _set_profile() -> str:
    implementation = os.environ.get("RMW_IMPLEMENTATION", "")
    if implementation and not implementation.startswith("rmw_fastrtps"):
        return f"{implementation}, as its own configuration says"
    variable, file = profile_names()
    # Each decides about the transports, so that our profile would override the user.
    for name in (variable, TRANSPORTS_VARIABLE):
        if os.environ.get(name):
            return f"Fast DDS, as {name}={os.environ[name]} says"
    if Path(file).is_file():
        return f"Fast DDS, as {file} in the working folder says"
    profile = share_folder() / "config" / "fastdds.xml"
    lacking = _lacking_room(_segment_bytes(profile))
    if lacking:
        return f"Fast DDS with its defaults, images above 0.5 MB will be lost: {lacking}"
    os.environ[variable] = str(profile)
    return f"Fast DDS with {variable}={profile}"


def _segment_bytes(profile: Path) -> int:
    root = ElementTree.parse(profile).getroot()
    return int(root.findtext(".//{http://www.eprosima.com}segment_size", "0"))


def _lacking_room(segment_bytes: int) -> str:
    """What is wrong with /dev/shm; empty when the segment fits."""
    if not _SHARED_MEMORY.is_dir():
        return ""
    free, needed = shutil.disk_usage(_SHARED_MEMORY).free, segment_bytes + _PORTS_BYTES
    if free >= needed:
        return ""
    return (
        f"expected {needed / 1e6:.0f} MB free in {_SHARED_MEMORY}, found {free / 1e6:.0f} MB; "
        "give the container more, such as --shm-size=1g, or remove what killed nodes left there "
        "with `fastdds shm clean`"
    )


def _set_heap_reserve() -> str:
    if TOP_PAD_VARIABLE in os.environ:
        return f"{TOP_PAD_VARIABLE}={os.environ[TOP_PAD_VARIABLE]}"
    try:
        mallopt = ctypes.CDLL(None).mallopt
        done = [mallopt(parameter, value) for parameter, value in _HEAP_SETTINGS.items()]
    except (AttributeError, OSError, TypeError):
        done = []
    if not all(done) or not done:
        return "as it is, the C library has no mallopt"
    return f"{HEAP_RESERVE >> 20} MiB of reserve"
