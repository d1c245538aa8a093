# SPDX-License-Identifier: Apache-2.0
"""The package `transformers`, imported when a network of it is chosen."""

from __future__ import annotations

import importlib
from types import ModuleType

from sparserefine_ros.errors import BackendError


def load_transformers(network: str) -> ModuleType:
    """The package.

    Args:
        network: what needs it, for the error text.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as err:
        raise BackendError(
            f"{network} needs the package transformers, which cannot be imported ({err}); "
            "install it: pip install 'sparserefine_ros[zoo]'"
        ) from err
