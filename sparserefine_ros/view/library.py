# SPDX-License-Identifier: Apache-2.0
"""The library `rerun`, loaded when a recording is first written or shown."""

from __future__ import annotations

import importlib
from typing import Any

from sparserefine_ros.errors import BackendError


def rerun_module(name: str = "rerun") -> Any:
    """Import a module of the library, such as "rerun.blueprint".

    Raises:
        BackendError: the library is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise BackendError(
            f"expected the package rerun-sdk to write recordings and to show them ({err}); "
            "install it with pip install 'rerun-sdk>=0.41', in Python 3.11 or newer"
        ) from err
