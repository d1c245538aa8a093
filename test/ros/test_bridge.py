# SPDX-License-Identifier: Apache-2.0
"""When cv_bridge is used, and that it gives the same pixels as we do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ros.messages import MAX_PIXELS, make_message, random_message, refused

from sparserefine_ros.encodings import ENCODINGS
from sparserefine_ros.ros.bridge import bridge_to_rgb, cv_bridge_available
from sparserefine_ros.ros.convert import image_to_rgb

RIGHT = """
import numpy
class CvBridge:
    def imgmsg_to_cv2(self, message, desired_encoding):
        return numpy.frombuffer(message.data, numpy.uint8).reshape(1, 2, 3)[..., ::-1]
"""


@pytest.fixture
def cache() -> Iterator[None]:
    cv_bridge_available.cache_clear()
    yield
    cv_bridge_available.cache_clear()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("module", "works"),
    [
        (RIGHT, True),
        (RIGHT.replace("::-1", "::1"), False),
        ("raise ImportError('built for NumPy 1')", False),
        ("import os; os.abort()", False),
    ],
    ids=["right", "wrong_colours", "import_error", "crash"],
)
def test_cv_bridge_counts_only_when_it_works(
    module: str, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv_bridge.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    assert cv_bridge_available() == works


@pytest.mark.usefixtures("cache")
def test_without_cv_bridge_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("tried"))
    assert not cv_bridge_available()


@pytest.mark.skipif(not cv_bridge_available(), reason="cv_bridge is missing or does not work here")
@pytest.mark.parametrize("encoding", [k for k, v in ENCODINGS.items() if v.known_to_cv_bridge])
def test_cv_bridge_gives_the_same_pixels(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = random_message(encoding, 4 * ENCODINGS[encoding].pixel_bytes)
    theirs = bridge_to_rgb(message)
    monkeypatch.setattr("sparserefine_ros.ros.convert.cv_bridge_available", lambda: False)
    np.testing.assert_array_equal(image_to_rgb(message, max_pixels=MAX_PIXELS), theirs)


@pytest.mark.parametrize(
    ("encoding", "big_endian", "padding", "used"),
    [
        ("bgr8", False, 3, True),
        ("bgr8", False, 1, False),
        ("mono16", sys.byteorder == "big", 0, True),
        ("mono16", sys.byteorder != "big", 0, False),
        ("8UC3", False, 0, False),
        ("rgb8", False, 0, False),
    ],
)
def test_cv_bridge_gets_only_what_it_reads_rightly(
    encoding: str,
    big_endian: bool,
    padding: int,
    used: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker = np.zeros((1, 1, 3), np.uint8)
    monkeypatch.setattr("sparserefine_ros.ros.convert.cv_bridge_available", lambda: True)
    monkeypatch.setattr("sparserefine_ros.ros.convert.bridge_to_rgb", lambda message: marker)
    message = random_message(encoding, padding)
    message.is_bigendian = big_endian
    assert (image_to_rgb(message, max_pixels=MAX_PIXELS) is marker) == used


def test_malformed_messages_do_not_reach_cv_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparserefine_ros.ros.convert.cv_bridge_available", lambda: True)
    monkeypatch.setattr(
        "sparserefine_ros.ros.convert.bridge_to_rgb", lambda _: pytest.fail("reached")
    )
    message = make_message("bgr8", 4, 5, 15)
    message.step = 14
    refused(lambda: image_to_rgb(message, max_pixels=MAX_PIXELS), "step")
