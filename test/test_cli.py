# SPDX-License-Identifier: Apache-2.0
"""Commands end with 0 or with one line that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.cli import main
from sparserefine_ros.cli.options import DEFAULT_BUNDLE
from sparserefine_ros.dense.backends import BACKENDS


def test_a_hand_written_bundle_is_sealed_then_verified(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(tiny_bundle / "dense.onnx", tmp_path / "model.onnx")
    (tmp_path / "bundle.yaml").write_text(
        "format: 1\nname: mine\nlicence: mine\n"
        "classes:\n"
        "  - {name: a, colour: [1, 2, 3]}\n"
        "  - {name: b, colour: [4, 5, 6]}\n"
        "  - {name: c, colour: [7, 8, 9]}\n"
        "dense:\n"
        "  file: {path: model.onnx}\n"
        "  input: {scale: 0.5}\n"
        "  output: {stride: 2}\n"
    )
    assert main(["bundle", "verify", str(tmp_path)]) == 1
    assert "sparserefine bundle seal" in capsys.readouterr().err
    assert main(["bundle", "seal", str(tmp_path)]) == 0
    assert main(["bundle", "verify", str(tmp_path)]) == 0
    digest = Bundle.open(tmp_path).digest
    printed = capsys.readouterr().out
    assert digest in printed
    assert "dense: onnxruntime CPU" in printed
    text = (tmp_path / "bundle.yaml").read_text()
    (tmp_path / "bundle.yaml").write_text(text.replace("stride: 2", "stride: 4"))
    assert main(["bundle", "seal", str(tmp_path)]) == 0
    assert main(["bundle", "verify", str(tmp_path)]) == 1
    assert "correct output.stride in bundle.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "street", "--bundle", "no/such"], "expected a bundle folder with bundle.yaml"),
        (["evaluate", "--data", "lake:7"], " camvid:ROOT, "),
        (["evaluate", "--data", f"camvid:{300 * 'x'}"], "File name too long"),
        (["run", "street", "--device", "gpu", "--limit", "1"], "runs on device"),
        (["run", "street", "--device", "", "--limit", "1"], "runs on device"),
        (["bench", "pipeline", "--frames", "-1"], "expected 20 frames or more"),
        (["bench", "deadline", "--budget-ms", "nan"], "expected a deadline"),
        (["train", "refiner", "x.yaml", "--out", "y"], "needs --bundle"),
        (["train", "dense", "no.yaml", "--out", "y"], "expected a readable file no.yaml"),
        (["train", "dense", "x.yaml", "--bundle", "b", "--out", "y"], "takes no --bundle"),
        (["bench", "pipeline", "--size", "large"], "expected a size such as 2048x1024"),
        (["bench", "pipeline", "--json", "/"], "expected a file to write, / is a folder"),
        (["bench", "sparse", "--engine", "cuda"], "expected a sparse engine of auto"),
        (["bench", "deadline", "--budget-ms", "9", "--entropy-threshold", "1"], "expected neither"),
    ],
    ids=[
        "bundle",
        "data",
        "long",
        "gpu",
        "nowhere",
        "few",
        "nan",
        "refiner",
        "recipe",
        "dense",
        "size",
        "file",
        "engine",
        "deadline",
    ],
)
def test_mistakes_are_one_line_and_exit_code_1(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert text in error
    assert "Traceback" not in error


def test_help_names_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert DEFAULT_BUNDLE in text
    for backend in BACKENDS:
        assert f" {backend}" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("sparserefine_ros ")


def test_an_interruption_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparserefine_ros.run.run_source", interrupted)
    assert main(["run", "street"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_wrong_usage_is_exit_code_2() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fly"])
    assert ended.value.code == 2


def test_an_output_that_nobody_reads_ends_it_quietly() -> None:
    """As in `sparserefine zoo list | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "sparserefine_ros.cli", "zoo", "list"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert ended.returncode == 141
    assert not ended.stderr
