# SPDX-License-Identifier: Apache-2.0
"""The dense model's ONNX file, before an engine sees it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.errors import BundleError

# How protobuf writes the entry {key: "location", value: FILE} of a tensor's external_data.
# The length of FILE takes a byte for seven of its bits, the lowest first; all but the last byte
# have the highest bit set.
_EXTERNAL_DATA: Final = re.compile(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])([^\x00-\x1f]+)")


def dense_model_file(bundle: Bundle) -> Path:
    """Path of the dense model; it is whole, and its SHA-256 is the bundle's.

    Raises:
        BundleError: its weights lie in a second file, which would escape the SHA-256.
    """
    path = bundle.path(bundle.spec.dense.file)
    match = _EXTERNAL_DATA.search(path.read_bytes())
    if match:
        length = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(match[1]))
        raise BundleError(
            f"{path}: expected an ONNX model in one file, its weights lie in "
            f"{match[2][:length].decode(errors='replace')!r}; save it whole: "
            "onnx.save(onnx.load(path), path, save_as_external_data=False)"
        )
    return path
