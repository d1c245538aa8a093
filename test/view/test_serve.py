# SPDX-License-Identifier: Apache-2.0
"""The viewer for a browser: it answers on this machine alone and ends when it is told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from sparserefine_ros.cli import main
from sparserefine_ros.errors import BackendError, ConfigurationError
from sparserefine_ros.view.serve import free_port, serve


@pytest.fixture
def recording(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    out = tmp_path / "street.rrd"
    words = ["view", "street:2:48x32", "--limit", "1", "--out", str(out), "--threads", "1"]
    assert main([*words, "--bundle", str(tiny_bundle)]) == 0
    assert f"1 frames, {out.stat().st_size / 1e6:.1f} MB in {out}" in capsys.readouterr().out
    return out


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the viewer each start is the first one, of which it reports nothing."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.usefixtures("quiet")
def test_the_page_and_its_data_are_served_and_both_end(recording: Path) -> None:
    with serve(recording, port=0) as viewer:
        parts = urlsplit(viewer.url)
        (data,) = parse_qs(parts.query)["url"]
        assert parts.hostname == urlsplit(data).hostname == "127.0.0.1"
        ports = [parts.port, urlsplit(data).port]
        with urllib.request.urlopen(viewer.url, timeout=10) as page:
            assert b"rerun" in page.read().lower()
        assert all(is_open(port) for port in ports)
        with pytest.raises(ConfigurationError, match="expected a free port"):
            free_port(ports[0])
    assert not any(is_open(port) for port in ports)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(
    recording: Path, package_environment: dict[str, str], number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "sparserefine_ros.cli", "view", str(recording), "--port", "0"]
    environment = {**package_environment, "XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"]}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("open ").strip()
        port = urlsplit(url).port
        assert port
        assert is_open(port)
        process.send_signal(number)
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert said.endswith("ended\n")
    assert not is_open(port)


def test_a_viewer_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, package = tmp_path / "view.rrd", tmp_path / "rerun_cli"
    recording.write_bytes(b"RRF2")
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("print('no graphics'); raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "rerun_cli", sys)
    with (
        pytest.raises(BackendError, match=r"exit code 3; it printed:\nno graphics"),
        serve(recording, port=0),
    ):
        pass


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> str:
        assert main(["view", *map(str, words)]) == 1
        return capsys.readouterr().err

    assert "there is no file" in said(tmp_path / "none.rrd", "--port", 0)
    (tmp_path / "film.rrd").write_bytes(b"RIFF, a film")
    assert "film.rrd is none" in said(tmp_path / "film.rrd", "--port", 0)
    (tmp_path / "film.rrd").unlink()
    assert "expected --out to end in .rrd" in said("street", "--out", tmp_path / "a.bin")
    assert "expected a free port" in said("street", "--serve", "--port", 70000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = said("street", "--serve", "--port", port, "--out", tmp_path / "a.rrd")
    assert f"cannot take {port}" in text
    assert list(tmp_path.iterdir()) == []
