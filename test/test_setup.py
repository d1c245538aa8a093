# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from setuptools import Distribution


def test_libraries_are_never_built_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their object files bear the same name."""
    from distutils.core import run_setup

    monkeypatch.chdir(Path(__file__).parents[1])
    distribution = run_setup("setup.py", stop_after="init")
    assert isinstance(distribution, Distribution)
    build = distribution.get_command_obj("build_ext")
    build.parallel = 4
    build.ensure_finalized()
    assert build.parallel is None
