# SPDX-License-Identifier: Apache-2.0
"""The refine stage on a GPU against the one on the CPU, on its own and in the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_statistics, smooth_picture, with_sections

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

from conftest import make_tiny_bundle

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.clock import StageClock
from sparserefine_ros.ensemble import GatedEnsembler
from sparserefine_ros.errors import BackendError, DeviceMemoryError, ModelOutputError
from sparserefine_ros.pipeline import Pipeline, PipelineOptions
from sparserefine_ros.records import ALL_MAPS, DenseOutput, Selection
from sparserefine_ros.refine_stage import CpuRefineStage
from sparserefine_ros.refiner import Refiner
from sparserefine_ros.selection import selection_from_mask, selection_from_pixels
from sparserefine_ros.triton_kernels import stage as module
from sparserefine_ros.triton_kernels.fusion import TritonGate
from sparserefine_ros.triton_kernels.stage import TritonRefineStage, _fuser
from sparserefine_ros.uncertainty import measure_uncertainty

CLASSES, FEATURES = 3, 5


def describe(folder: Path, **refiner: Any) -> Bundle:
    """A bundle whose refiner section says `refiner`; its weights are not looked at."""
    fields = Bundle.open(folder).spec.refiner
    assert fields is not None
    spec = Bundle.open(folder).spec
    section = {**spec.model_dump()["refiner"], **refiner}
    features = {"name": "features", "channels": FEATURES}
    dense = {**spec.model_dump()["dense"], "features": features}
    changed = type(spec).model_validate({**spec.model_dump(), "refiner": section, "dense": dense})
    return Bundle(folder, changed, "")


def make_refiner(bundle: Bundle) -> Refiner:
    torch.manual_seed(4)
    spec = bundle.spec.refiner
    assert spec is not None
    refiner = Refiner(spec, bundle.spec.refiner_channels(), CLASSES)
    random_statistics(refiner)
    return refiner.eval()


def make_scene(full: tuple[int, int], low: tuple[int, int]) -> tuple[Any, DenseOutput]:
    """A picture and a dense result whose features are half the logits' size."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(CLASSES, *low, generator=generator)
    features = torch.randn(FEATURES, -(-low[0] // 2), -(-low[1] // 2), generator=generator)
    return smooth_picture(*full), DenseOutput(logits, features)


def some_blocks(low: tuple[int, int], full: tuple[int, int]) -> Selection:
    mask = torch.rand(low, generator=torch.Generator().manual_seed(6)) < 0.4
    return selection_from_mask(mask, full)


@pytest.mark.parametrize("ensembler", ["gated", "entropy", "direct"])
@pytest.mark.parametrize(
    "inputs", [("rgb",), ("logits", "rgb"), ("rgb", "logits", "features")], ids="-".join
)
def test_equals_the_cpu(
    tiny_bundle: Path, device: torch.device, inputs: tuple[str, ...], ensembler: str
) -> None:
    """At sizes that do not divide, in the channel order BGR."""
    full, low = (23, 31), (10, 13)
    bundle = describe(tiny_bundle, inputs=inputs, ensembler=ensembler, channel_order="BGR")
    compare(bundle, make_scene(full, low), some_blocks(low, full), device)


def compare(
    bundle: Bundle, scene: tuple[Any, DenseOutput], selection: Selection, device: torch.device
) -> None:
    refiner, (image, dense) = make_refiner(bundle), scene
    expected = CpuRefineStage(refiner, bundle, engine="pytorch")(
        image, dense, selection, StageClock()
    )
    stage = TritonRefineStage(refiner, bundle, engine="triton", device=device)
    clock = StageClock()
    found = stage(image, dense, selection, clock)
    assert expected is not None
    assert found is not None
    assert (found.labels == expected.labels).float().mean() > 0.99
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        found.top_probability, expected.top_probability, rtol=1e-3, atol=1e-3
    )
    assert all(part.device.type == "cpu" for part in (found.labels, found.entropy))
    took = clock.times().milliseconds
    assert {name for name, ms in took.items() if ms > 0.0} == {"plan", "refine", "fusion"}


def test_pixels_that_fill_no_blocks(tiny_bundle: Path, device: torch.device) -> None:
    full, low = (20, 24), (10, 12)
    mask = np.random.default_rng(7).random(full) < 0.3
    selection = selection_from_pixels(mask, low)
    bundle = describe(tiny_bundle, inputs=("rgb", "logits"))
    compare(bundle, make_scene(full, low), selection, device)


def test_a_picture_of_a_message_is_read_only(tiny_bundle: Path, device: torch.device) -> None:
    full, low = (20, 24), (10, 12)
    image, dense = make_scene(full, low)
    image.flags.writeable = False
    compare(describe(tiny_bundle), (image, dense), some_blocks(low, full), device)


def test_sizes_may_change(tiny_bundle: Path, device: torch.device) -> None:
    bundle = describe(tiny_bundle)
    refiner = make_refiner(bundle)
    stage = TritonRefineStage(refiner, bundle, engine="triton", device=device)
    on_cpu = CpuRefineStage(refiner, bundle, engine="pytorch")
    for full in ((20, 24), (12, 16), (20, 24)):
        low = (full[0] // 2, full[1] // 2)
        scene, selection = make_scene(full, low), some_blocks(low, full)
        found = stage(*scene, selection, StageClock())
        expected = on_cpu(*scene, selection, StageClock())
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-3, atol=1e-3)


def test_the_first_frame_of_a_size_is_not_settled(tiny_bundle: Path, device: torch.device) -> None:
    bundle = describe(tiny_bundle)
    stage = TritonRefineStage(make_refiner(bundle), bundle, engine="triton", device=device)
    scene = make_scene((20, 24), (10, 12))
    mask = torch.zeros(10, 12, dtype=torch.bool)
    settled = []
    for blocks in (30, 31, 2, 28, 3):
        mask.view(-1)[:] = torch.arange(120) < blocks
        stage(*scene, selection_from_mask(mask, (20, 24)), StageClock())
        settled.append(stage.settled)
    assert settled == [False, True, False, True, True]


def test_a_frame_that_tuned_is_not_settled(
    tiny_bundle: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A level below, or the sharing of taps, may be of a new kind in a frame of a known size."""
    bundle = describe(tiny_bundle)
    stage = TritonRefineStage(make_refiner(bundle), bundle, engine="triton", device=device)
    scene, selection = make_scene((20, 24), (10, 12)), some_blocks((10, 12), (20, 24))
    tuned = iter([5, 5, 5, 6, 6, 6])
    monkeypatch.setattr("sparserefine_ros.triton_kernels.stage.tuned", lambda: next(tuned))
    settled = []
    for _ in range(3):
        stage(*scene, selection, StageClock())
        settled.append(stage.settled)
    assert settled == [False, False, True]


def test_not_finite(
    tiny_bundle: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = describe(tiny_bundle)
    stage = TritonRefineStage(make_refiner(bundle), bundle, engine="triton", device=device)
    plain = stage._extract

    def overflow(features: torch.Tensor, plan: Any) -> torch.Tensor:
        logits = plain(features, plan).clone()
        logits[3, 1] = float("inf")
        return logits

    monkeypatch.setattr(stage, "_extract", overflow)
    with pytest.raises(ModelOutputError, match="NaN or infinity; choose the sparse engine"):
        stage(*make_scene((20, 24), (10, 12)), some_blocks((10, 12), (20, 24)), StageClock())


def test_nothing_selected(tiny_bundle: Path, device: torch.device) -> None:
    bundle = describe(tiny_bundle)
    stage = TritonRefineStage(make_refiner(bundle), bundle, engine="triton", device=device)
    nothing = selection_from_mask(torch.zeros(10, 12, dtype=torch.bool), (20, 24))
    assert stage(*make_scene((20, 24), (10, 12)), nothing, StageClock()) is None


def test_memory_runs_out_beside_the_network(
    tiny_bundle: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    bundle = describe(tiny_bundle)
    stage = TritonRefineStage(make_refiner(bundle), bundle, engine="triton", device=device)
    monkeypatch.setattr(module, "plan_from_mask", fail)
    selection = some_blocks((10, 12), (20, 24))
    with pytest.raises(DeviceMemoryError, match=rf"refine {selection.count} pixels, it ran out"):
        stage(*make_scene((20, 24), (10, 12)), selection, StageClock())


def test_memory_runs_out_while_it_opens(
    tiny_bundle: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    bundle = describe(tiny_bundle)
    monkeypatch.setattr(module, "open_engine", fail)
    with pytest.raises(BackendError, match="for the refiner's weights, it ran out"):
        TritonRefineStage(make_refiner(bundle), bundle, engine="triton", device=device)


@pytest.mark.parametrize("classes", [64, 65])
def test_any_number_of_classes_is_fused_alike(classes: int, device: torch.device) -> None:
    """Up to 64 in one pass, more in several."""
    torch.manual_seed(2)
    ensembler = GatedEnsembler(classes).to(device)
    dense, refined = (2 * torch.randn(2, 50, classes)).to(device).unbind(0)
    expected = measure_uncertainty(ensembler(dense, refined).detach().t().cpu()[:, None])
    fuse = _fuser(ensembler)
    assert isinstance(fuse, TritonGate) == (classes <= 64)
    with torch.inference_mode():
        found = fuse(dense, refined)
    torch.testing.assert_close(found.entropy.cpu(), expected.entropy[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.labels.cpu(), expected.labels[0])


def test_an_oracle_stays_on_the_cpu(tiny_bundle: Path, device: torch.device) -> None:
    bundle = describe(tiny_bundle, ensembler="oracle")
    with pytest.raises(BackendError, match="the oracle does not"):
        TritonRefineStage(make_refiner(bundle), bundle, engine="triton", device=device)


class TestPipeline:
    def run(self, bundle: Bundle, engine: str, device: torch.device) -> Any:
        kind = "cuda" if engine == "triton" and device.type == "cuda" else "cpu"
        options = PipelineOptions(threads=1, sparse_backend=engine, device=kind)
        try:
            pipeline = Pipeline(bundle, options)
        except BackendError as err:
            if kind == "cpu":
                raise
            pytest.skip(f"no engine for the dense model on this GPU: {err}")
        return pipeline, pipeline(smooth_picture(50, 66), ALL_MAPS)

    @pytest.mark.parametrize("selector", [None, {"kind": "random", "density": 0.3}])
    def test_same_maps(self, tmp_path: Path, device: torch.device, selector: Any) -> None:
        folder = make_tiny_bundle(tmp_path / "tiny", sharpness=4.0)
        bundle = Bundle.open(folder)
        if selector:
            bundle = with_sections(folder, selector=selector)
        pipeline, found = self.run(bundle, "triton", device)
        _, expected = self.run(bundle, "pytorch", device)
        assert found.refined_pixels == expected.refined_pixels > 0
        assert np.array_equal(found.refined, expected.refined)
        assert (found.labels == expected.labels).mean() > 0.999
        assert np.allclose(found.entropy, expected.entropy, atol=1e-3)
        assert pipeline.backends["sparse"].startswith(f"triton on {device}")
