# SPDX-License-Identifier: Apache-2.0
"""Label names as vision_msgs/LabelInfo, which this machine may lack."""

from __future__ import annotations

from types import SimpleNamespace

from std_msgs.msg import Header

from sparserefine_ros.ros.label_info import import_vision_msgs, names_to_label_info


def test_label_names_are_numbered_in_label_order() -> None:
    vision = import_vision_msgs() or SimpleNamespace(
        VisionClass=SimpleNamespace, LabelInfo=SimpleNamespace
    )
    header = Header(frame_id="map")
    info = names_to_label_info(vision, ("road", "car"), header)
    assert info.header == header
    assert [(entry.class_id, entry.class_name) for entry in info.class_map] == [
        (0, "road"),
        (1, "car"),
    ]
