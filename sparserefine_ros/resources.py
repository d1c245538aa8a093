# SPDX-License-Identifier: Apache-2.0
"""Where the installed models, configuration and launch files lie."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.files import expanded

_PACKAGE = "sparserefine_ros"


def share_folder() -> Path:
    """Folder that holds `config/`, `launch/` and `models/`.

    That is the source tree when running from one, else the share folder of the installation:
    the one the interpreter's pip wrote, or the first on AMENT_PREFIX_PATH.

    Raises:
        ConfigurationError: none was found.
    """
    tried = list(_candidates())
    for folder in tried:
        if (folder / "package.xml").is_file():
            return folder
    raise ConfigurationError(
        f"expected {_PACKAGE}'s share folder at one of {[str(path) for path in tried]}; "
        "install the package with pip or colcon"
    )


def _candidates() -> Iterator[Path]:
    yield Path(__file__).resolve().parent.parent
    for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
        yield Path(prefix) / "share" / _PACKAGE
    yield Path(sys.prefix) / "share" / _PACKAGE
    # Where pip without a virtual environment puts them: for a user, and for root on Debian.
    yield Path(site.getuserbase()) / "share" / _PACKAGE
    yield Path(sysconfig.get_path("data")) / "share" / _PACKAGE


def find_bundle(name_or_path: str) -> Path:
    """Folder of a bundle: a path, or the name of one that ships with the package.

    A name without a path separator that is no folder here is looked up among the shipped bundles;
    what does not exist is returned as it is, for `Bundle.open` to report.

    Raises:
        ConfigurationError: a name that is no folder here and that no shipped bundle has.
    """
    path = expanded(name_or_path)
    try:
        if path.exists() or len(path.parts) != 1:
            return path
    except (OSError, ValueError) as err:  # a name that is too long, or holds a NUL
        raise ConfigurationError(f"expected a bundle folder, cannot look for it: {err}") from err
    models = (share_folder() / "models").iterdir()
    shipped = {folder.name: folder for folder in models if folder.is_dir()}
    if path.name not in shipped:
        raise ConfigurationError(
            f"expected a bundle folder or one of {', '.join(sorted(shipped))}, which ship with the "
            f"package, got {name_or_path!r}"
        )
    return shipped[path.name]
