# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from sparserefine_ros.errors import BackendError
from sparserefine_ros.triton_kernels import runtime

triton = pytest.importorskip("triton", reason="triton is not installed")


def test_a_machine_on_which_triton_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to find C compiler")

    active = SimpleNamespace(get_current_device=fail)
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=active))
    with pytest.raises(BackendError, match=r"find C compiler\); .* apt install gcc python3-dev"):
        runtime.check_device(torch.device("cuda"))
    active.get_current_device = lambda: 0
    runtime.check_device(torch.device("cuda"))


def test_one_thread_launches_at_a_time() -> None:
    inside, most = 0, 0

    def launch() -> None:
        nonlocal inside, most
        for _ in range(20):
            with runtime.launching_on(torch.zeros(1)), runtime.launching_on(torch.zeros(1)):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=launch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
