# SPDX-License-Identifier: Apache-2.0
"""What convolutions of several threads share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sparserefine_ros.kernels import convolution
from sparserefine_ros.kernels.convolution import zeros


def test_threads_that_need_zeros_at_once_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their addresses go to the kernels, so that none may be given up."""
    monkeypatch.setattr(convolution, "_zeros", {})
    plain, threads = torch.zeros, 4
    meeting = threading.Barrier(threads, timeout=10.0)

    def together(channels: int) -> torch.Tensor:
        made = plain(channels)
        meeting.wait()  # all make some before any keeps them
        return made

    monkeypatch.setattr(torch, "zeros", together)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(zeros, [48] * threads))
    assert len({each.data_ptr() for each in found}) == 1
    assert found[0].shape == (48,)
