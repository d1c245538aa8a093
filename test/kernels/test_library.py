# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparserefine_ros.errors import BackendError
from sparserefine_ros.kernels import library
from sparserefine_ros.kernels.library import VARIABLE, Kernels, compiled_kernels


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    compiled_kernels.cache_clear()
    yield
    compiled_kernels.cache_clear()


@pytest.mark.parametrize("flags", [library._V4_FLAGS, library._V3_FLAGS, frozenset()], ids=len)
def test_never_more_than_the_processor_has(
    flags: frozenset[str], kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_kernels.cache_clear()
    monkeypatch.setattr(library, "_processor_flags", lambda: flags)
    found = compiled_kernels()
    assert found is not None
    needed = {name: wanted for _, name, wanted in library._VARIANTS}
    assert needed[found.name] <= flags


def test_pytorch_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert compiled_kernels() is None


def test_none_where_none_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_find", lambda _: None)
    assert compiled_kernels() is None


def test_a_library_of_another_version_is_refused(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_kernels.cache_clear()
    monkeypatch.setattr(library, "_INTERFACE", library._INTERFACE + 1)
    with pytest.raises(BackendError, match="to be built from this version of the package"):
        compiled_kernels()


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"no library" * 100], ids=len)
def test_a_library_that_does_not_load(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "_portable.so"
    path.write_bytes(content)
    monkeypatch.setattr(library, "_find", lambda _: path)
    with pytest.raises(BackendError, match=r"install the package again.*, or set SPARSEREFINE_KER"):
        compiled_kernels()


@pytest.mark.parametrize("variant", ["_x86_64_v4", "_x86_64_v3", "_portable"])
def test_other_instruction_sets_compute_the_same(variant: str, kernels: Kernels) -> None:
    """The kernels' own tests once more, in a process that may use this library only."""
    if library._find(variant) is None:
        pytest.skip(f"{variant} is not built for this processor")
    if not {name: need for name, _, need in library._VARIANTS}[variant] <= (
        library._processor_flags()
    ):
        pytest.skip(f"this processor cannot run {variant}")
    code = (
        "import sys, pytest\n"
        "from sparserefine_ros.kernels import library\n"
        f"library._VARIANTS = tuple(v for v in library._VARIANTS if v[0] == {variant!r})\n"
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', 'test/sparse/test_inference.py',\n"
        "    'test/test_ensemble.py', 'test/test_uncertainty.py', 'test/sparse/test_plan.py',\n"
        "    'test/sparse/test_convolve.py']))\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
