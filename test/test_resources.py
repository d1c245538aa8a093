# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import site
import sys
import sysconfig
from pathlib import Path

import pytest

from sparserefine_ros import resources
from sparserefine_ros.errors import ConfigurationError
from sparserefine_ros.resources import find_bundle, share_folder

ROOT = Path(__file__).parents[1]


def test_the_source_tree_comes_first() -> None:
    assert share_folder() == ROOT
    assert find_bundle("street_small") == ROOT / "models" / "street_small"
    assert (
        find_bundle("street_small/")
        == find_bundle("./street_small")
        == share_folder() / ("models/street_small")
    )
    assert find_bundle("no/such_bundle") == Path("no/such_bundle")
    with pytest.raises(ConfigurationError, match="one of street_large, street_small, which ship"):
        find_bundle("no_such_bundle")


@pytest.mark.parametrize("place", ["prefix", "user", "data", "ament"])
def test_wherever_it_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A virtual environment, `pip install --user`, root on Debian, colcon."""
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "lib" / "x" / "resources.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(site, "getuserbase", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path / 'other'}:{tmp_path / 'ament'}")
    with pytest.raises(ConfigurationError, match="install the package with pip or colcon"):
        share_folder()
    folder = tmp_path / place / "share" / "sparserefine_ros"
    folder.mkdir(parents=True)
    (folder / "package.xml").touch()
    assert share_folder() == folder


@pytest.mark.parametrize("name", [5000 * "x", "a\0b"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot look for it|ship with the package"):
        find_bundle(name)
