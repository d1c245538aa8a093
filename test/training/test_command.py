# SPDX-License-Identifier: Apache-2.0
"""`sparserefine train refiner` for a third party's model on a data set of one's own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import smooth_picture, write_pointwise_onnx

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.cli import main
from sparserefine_ros.data.street import StreetScene
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS

CLASSES = [{"name": name, "colour": [9 * i, 0, 0]} for i, name in enumerate("abcde")]
EPOCHS = 12


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that are started: sums of other threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, an ONNX model with a hand-written bundle.yaml, and a recipe."""
    home = tmp_path_factory.mktemp("home")
    write_data(home / "data")
    bundle = home / "model"
    bundle.mkdir()
    rng = np.random.default_rng(5)
    weight, bias = rng.normal(0, 1.5, (5, 3)), rng.normal(0, 0.5, 5)
    write_pointwise_onnx(
        bundle / "theirs.onnx", weight.astype(np.float32), bias.astype(np.float32), stride=2
    )
    write_yaml(
        bundle / "bundle.yaml",
        name="theirs",
        licence="theirs",
        classes=CLASSES,
        dense={
            "file": {"path": "theirs.onnx"},
            "input": {"scale": 0.5, "multiple_of": 2},
            "output": {"stride": 2},
        },
    )
    assert main(["bundle", "seal", str(bundle)]) == 0
    write_yaml(
        home / "recipe.yaml",
        name="refined",
        train=[{"data": f"folder:{home / 'data'}", "repeat": 3}],
        validate_on=f"folder:{home / 'data'}",
        selector={"kind": "entropy", "threshold_nats": 0.6},
        inputs=["rgb", "logits"],
        extractor={"kind": "unet", "widths": [8, 12], "blocks": 1},
        dice=0.2,
        schedule={
            "epochs": EPOCHS,
            "batch_size": 2,
            "learning_rate": 0.01,
            "validate_every": 3,
            "average_decay": 0.8,
            "workers": 1,
        },
        augmentation={"crop": [40, 56], "scale": [0.8, 1.25]},
    )
    return home


def write_data(root: Path) -> None:
    """Scenes with their first five classes; label files number them from 1 and know a sixth."""
    for split, seeds in (("train", range(4)), ("val", (7, 8))):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for seed in seeds:
            frame = StreetScene(seed).render(0.0, height=48, width=64)
            labels = np.minimum(frame.labels.astype(int) + 1, 6).astype(np.uint8)
            cv2.imwrite(str(root / split / "images" / f"{seed}.png"), frame.image[:, :, ::-1])
            cv2.imwrite(str(root / split / "labels" / f"{seed}.png"), labels)
    label_map: dict[int, int | str] = {i + 1: i for i in range(5)}
    write_yaml(root / "dataset.yaml", classes=CLASSES, label_map={**label_map, 6: "ignored"})


def write_yaml(path: Path, **fields: Any) -> None:
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")


def arguments(home: Path, out: Path, *more: str) -> list[str]:
    paths = (str(home / "recipe.yaml"), "--bundle", str(home / "model"), "--out", str(out))
    return ["train", "refiner", *paths, *more]


@pytest.fixture(scope="module")
def uninterrupted(home: Path) -> Path:
    """Folder of a whole run."""
    assert main(arguments(home, home / "whole")) == 0
    return home / "whole"


def load(folder: Path, name: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / name, weights_only=True)
    return state


def reached_epoch(epoch: int, log: Path) -> bool:
    return log.exists() and f"\n{epoch}," in log.read_text()


def test_one_command_leaves_a_bundle_that_runs(uninterrupted: Path) -> None:
    bundle = Bundle.open(uninterrupted / "bundle")
    assert bundle.class_names == tuple("abcde")
    assert bundle.spec.training["refiner_epochs"] == EPOCHS
    assert 0.0 < float(bundle.spec.training["refined_val_miou"]) <= 1.0
    prediction = Pipeline(bundle, PipelineOptions(threads=1))(smooth_picture(51, 67), ALL_MAPS)
    assert prediction.labels is not None
    assert prediction.labels.shape == (51, 67)
    assert prediction.labels.max() < 5
    assert prediction.refined_pixels > 0


def test_nothing_to_resume_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that was mistyped would train from the start unnoticed."""
    out = tmp_path / "mistyped"
    assert main(["train", "dense", "no.yaml", "--out", str(out), "--resume"]) == 1
    assert f"{out} holds no run to resume: a new one begins" in capsys.readouterr().err


def test_killed_in_the_middle_then_resumed(
    home: Path, uninterrupted: Path, package_environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "sparserefine_ros.cli", *arguments(home, out)]
    with subprocess.Popen(
        command, env=package_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60.0
        while not reached_epoch(4, out / "log.csv"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -9
    assert 3 <= load(out, "last.pt")["epochs_done"] < EPOCHS
    assert not (out / "bundle").exists()

    assert main(arguments(home, out, "--resume")) == 0
    # Bit for bit: the same record, log and weights.
    assert Bundle.open(out / "bundle").digest == Bundle.open(uninterrupted / "bundle").digest
    assert (out / "log.csv").read_text() == (uninterrupted / "log.csv").read_text()
    for name in ("last.pt", "best.pt"):
        resumed, whole = (load(folder, name)["module"] for folder in (out, uninterrupted))
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in uninterrupted.iterdir()
    )


def test_an_interrupted_run_tells_how_to_go_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparserefine_ros.training.refiner.train_refiner", interrupted)
    assert main(arguments(home, tmp_path)) == 130
    assert "no epoch was done" in capsys.readouterr().err
    (tmp_path / "last.pt").touch()
    assert main(arguments(home, tmp_path)) == 130
    assert "--resume" in capsys.readouterr().err


def test_two_processes_leave_one_bundle(
    home: Path, package_environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "two"
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, *launch, "-m", "sparserefine_ros.cli", *arguments(home, out)]
    done = subprocess.run(
        command, env=package_environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"bundle refined at {out / 'bundle'}") == 1
    names = ["best.pt", "bundle", "last.pt", "log.csv", "refiner.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    lines = (out / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", *map(str, range(1, EPOCHS + 1))]
    prediction = Pipeline(Bundle.open(out / "bundle"))(smooth_picture(51, 67), ALL_MAPS)
    assert prediction.refined_pixels > 0
