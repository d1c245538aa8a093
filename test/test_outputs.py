# SPDX-License-Identifier: Apache-2.0
"""Results on disk where the pictures are of extreme shapes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.outputs import ResultWriter


def test_the_sheet_of_very_tall_pictures_is_written(tiny_bundle: Path, tmp_path: Path) -> None:
    """One below the other they would have more rows than a JPEG."""
    writer = ResultWriter(tmp_path, Bundle.open(tiny_bundle), video_fps=10.0)
    tall = (16384, 2)
    image, labels = np.zeros((*tall, 3), np.uint8), np.zeros(tall, np.uint8)
    for index in range(6):
        name = f"view_{index}"
        writer.add(name, image, labels, np.zeros(tall, np.float32), np.zeros(tall, np.bool_))
    writer.close()
    sheet = cv2.imread(str(tmp_path / "contact_sheet.jpg"))
    assert 6 * 960 < sheet.shape[0] < 6 * 1024
