# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparserefine_ros.openmp import SPIN_VARIABLE, spin_briefly

ROOT = Path(__file__).parents[1]


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPIN_VARIABLE, "77")
    spin_briefly()
    assert os.environ[SPIN_VARIABLE] == "77"


@pytest.mark.parametrize(
    "start",
    [
        "from sparserefine_ros.cli import main; main(['bundle', 'verify', '/nowhere'])",
        "import sys\nfrom sparserefine_ros.ros import segment\n"
        "class Node:\n    main = staticmethod(lambda args: None)\n"
        "sys.modules['sparserefine_ros.ros.node'] = Node\n"
        "import sparserefine_ros.ros; sparserefine_ros.ros.node = Node\n"
        "assert 'torch' not in sys.modules; segment.main([])",
    ],
    ids=["cli", "node"],
)
def test_set_before_openmp_is_loaded(start: str) -> None:
    code = f"{start}\nimport os; print(os.environ['{SPIN_VARIABLE}'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["1000"], done.stderr
