# SPDX-License-Identifier: Apache-2.0
"""MCAP files read record by record, made by hand with what a damaged one may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bags.recording import mcap_record, record_unindexed
from bags.test_reader import COUNT, entries, pictures, read

from sparserefine_ros.bags.mcap import mcap_messages

SHORT = {
    "schema": (0x03, b"\x01"),
    "schema cut in its name": (0x03, b"\x01\x00" + (99).to_bytes(4, "little") + b"std"),
    "channel": (0x04, b"\x09\x00"),
    "channel cut in its topic": (0x04, b"\x09\x00\x01\x00\xff\xff\xff\xff/ima"),
    "message": (0x05, b"\x01\x00" + bytes(19)),
}


@pytest.mark.parametrize("record", SHORT.values(), ids=SHORT.keys())
def test_a_record_too_short_for_its_kind_is_damage(
    tmp_path: Path, record: tuple[int, bytes]
) -> None:
    path = record_unindexed(tmp_path / "bag.mcap", entries(30, 40), whole=False)
    more = record_unindexed(tmp_path / "more.mcap", entries(30, 40), whole=False)
    path.write_bytes(path.read_bytes() + mcap_record(*record) + more.read_bytes()[8:])
    found, damage = read(path)
    np.testing.assert_array_equal(found, pictures(30, 40))
    assert len(damage) == 1
    assert damage[0].startswith("bag.mcap is cut off or damaged, only what is whole was read (")


def test_a_tail_of_zeros_is_no_record(tmp_path: Path) -> None:
    path = record_unindexed(tmp_path / "bag.mcap", entries(30, 40), whole=False)
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.truncate(whole + 9 * 1000)
    with path.open("rb") as file:
        assert len(list(mcap_messages(file, path.stat().st_size))) == COUNT
        assert file.tell() == whole + 9
    # Likewise in a chunk: 1000 records of kind 0 and no message.
    chunk = bytes(16) + (9000).to_bytes(8, "little") + bytes(8) + (9000).to_bytes(8, "little")
    path.write_bytes(path.read_bytes()[:whole] + mcap_record(0x06, chunk + bytes(9000)))
    found, damage = read(path)
    assert (len(found), len(damage)) == (COUNT, 1)
