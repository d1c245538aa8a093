# SPDX-License-Identifier: Apache-2.0
"""The whole network on Triton's kernels: against the dense oracle in float64, and on a GPU."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import random_statistics
from oracle import DenseUNet, example_masks, grid_of, grid_to_rows, rows_to_grid, sites_of
from torch import Tensor

NO_TRITON = "Triton is not installed: pip install triton (Linux, x86-64)"
triton = pytest.importorskip("triton", reason=NO_TRITON)

from sparserefine_ros.errors import BackendError, DeviceMemoryError  # noqa: E402
from sparserefine_ros.sparse.engines import open_engine  # noqa: E402
from sparserefine_ros.sparse.plan import Bounds, SparsePlan, build_plan  # noqa: E402
from sparserefine_ros.sparse.pytorch import PyTorchUNet  # noqa: E402
from sparserefine_ros.sparse.unet import SparseUNet  # noqa: E402
from sparserefine_ros.triton_kernels import runtime  # noqa: E402
from sparserefine_ros.triton_kernels import unet as module  # noqa: E402
from sparserefine_ros.triton_kernels.runtime import INTERPRETER_VARIABLE  # noqa: E402
from sparserefine_ros.triton_kernels.unet import Precision, TritonUNet  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned_memory")

MASKS = example_masks()
INPUTS, CLASSES = 4, 3

# Rms error over the rms of what is right, over about ten layers.
LARGEST_ERROR: dict[Precision, float] = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-2}
NEEDS_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU, PyTorch finds none"
)


@functools.cache
def make_unet(widths: tuple[int, ...] = (4, 6, 5), blocks: int = 1) -> SparseUNet:
    torch.manual_seed(31)
    unet = SparseUNet(INPUTS, CLASSES, widths=widths, blocks=blocks)
    random_statistics(unet)
    return unet.eval()


def make_features(mask: Tensor, seed: int = 32) -> Tensor:
    return torch.randn(int(mask.sum()), INPUTS, generator=torch.Generator().manual_seed(seed))


def make_plan(mask: Tensor, unet: SparseUNet, bounds: Bounds = "image") -> SparsePlan:
    return build_plan(sites_of(mask), grid_of(mask), unet.depth, bounds=bounds)


def oracle_logits(unet: SparseUNet, features: Tensor, mask: Tensor, bounds: str) -> Tensor:
    weights = {key: value.detach().double().cpu() for key, value in unet.state_dict().items()}
    dense = DenseUNet(weights, bounds, training=False)
    return grid_to_rows(dense(rows_to_grid(features.double(), mask), mask), mask)


def check(
    unet: SparseUNet, mask: Tensor, bounds: Bounds, precision: Precision, device: torch.device
) -> None:
    features, plan = make_features(mask), make_plan(mask, unet, bounds)
    engine = TritonUNet(unet.to(device), precision=precision)
    logits = engine(features.to(device), plan.to(device))
    assert logits.shape == (int(mask.sum()), CLASSES)
    assert logits.dtype == torch.float32
    expected = oracle_logits(unet, features, mask, bounds)
    difference = logits.double().cpu() - expected
    assert difference.isfinite().all()
    if expected.numel():
        error = difference.square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < LARGEST_ERROR[precision]


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("odd", "image"), ("even", "data"), ("batch-half-empty", "data"), ("inner-block", "data"),
        ("full", "image"), ("empty", "image"), ("empty", "data"), ("one-last", "image"),
        ("one-middle", "data"), ("corners", "image"), ("one-row", "image"),
        ("one-pixel-picture", "image"), ("three-by-three", "image"),
    ],
)  # fmt: skip
def test_equals_the_oracle(name: str, bounds: Bounds, device: torch.device) -> None:
    check(make_unet(), MASKS[name], bounds, "fp32", device)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["odd", "one-first"])
def test_half_precision(name: str, precision: Precision, device: torch.device) -> None:
    check(make_unet(), MASKS[name], "image", precision, device)


@pytest.mark.parametrize(
    ("widths", "blocks"),
    [((33,), 1), ((18, 5), 2), ((3, 4, 5, 6), 3)],
    ids=["one-level", "two-blocks", "four-levels"],
)
def test_other_sizes_of_network(widths: tuple[int, ...], blocks: int, device: torch.device) -> None:
    check(make_unet(widths, blocks), MASKS["odd"], "image", "fp32", device)


def test_masks_may_change_and_results_stay(device: torch.device) -> None:
    unet = make_unet((4, 6), 1).to(device)
    engine, kept = TritonUNet(unet, precision="fp32"), []
    for seed, name in enumerate(("sparse", "corners", "empty", "sparse")):
        mask = MASKS[name]
        features = make_features(mask, seed)
        logits = engine(features.to(device), make_plan(mask, unet).to(device))
        kept.append((logits, oracle_logits(unet, features, mask, "image")))
    for logits, expected in kept:
        torch.testing.assert_close(logits.double().cpu(), expected, rtol=1e-4, atol=1e-4)


def test_is_a_copy_that_further_training_does_not_change(device: torch.device) -> None:
    mask, unet = MASKS["corners"], SparseUNet(INPUTS, CLASSES, widths=(4, 6), blocks=1).eval()
    features, plan = make_features(mask).to(device), make_plan(mask, unet).to(device)
    unet.to(device)
    engine = TritonUNet(unet, precision="fp32")
    expected = unet(features, plan).detach()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    logits = engine(features, plan)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_opens_by_name(device: torch.device) -> None:
    mask, unet = MASKS["corners"], make_unet((5,)).to(device)
    features, plan = make_features(mask).to(device), make_plan(mask, unet).to(device)
    precisions: dict[str, Precision] = {
        "triton": "fp32", "triton-float16": "fp16", "triton-bfloat16": "bf16"
    }  # fmt: skip
    for name, precision in precisions.items():
        engine = open_engine(name, unet, threads=1)
        expected = TritonUNet(unet, precision=precision)(features, plan)
        assert torch.equal(engine(features, plan), expected)


class TestOutOfMemory:
    """Memory is said to have run out in the first convolutions after the third."""

    @pytest.fixture
    def fail(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        def fail(times: int) -> None:
            calls = 0
            plain = module.convolve

            def convolve(*arguments: Any, **options: Any) -> None:
                nonlocal calls
                calls += 1
                if calls % 4 == 0 and calls <= 4 * times:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                plain(*arguments, **options)

            monkeypatch.setattr(module, "convolve", convolve)

        return fail

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
            (RuntimeError("Triton Error [CUDA]: out of memory"), True),
            (RuntimeError("Triton Error [CUDA]: an illegal memory access"), False),
        ],
        ids=["PyTorch", "Triton", "another"],
    )
    def test_how_it_is_told(self, error: RuntimeError, expected: bool) -> None:
        assert module.is_out_of_memory(error) == expected

    def test_once(self, fail: Callable[[int], None], device: torch.device) -> None:
        fail(1)
        check(make_unet((4, 6), 1), MASKS["one-first"], "image", "fp32", device)

    def test_twice(self, fail: Callable[[int], None], device: torch.device) -> None:
        unet, mask = make_unet((4, 6), 1).to(device), MASKS["corners"]
        features, plan = make_features(mask).to(device), make_plan(mask, unet).to(device)
        engine = TritonUNet(unet, precision="fp32")
        expected = engine(features, plan)
        fail(2)
        message = r"network on 4 pixels, it ran out .*2\.00 GiB.* lower max_refined_pixels"
        with pytest.raises(DeviceMemoryError, match=message):
            engine(features, plan)
        assert torch.equal(engine(features, plan), expected)


class TestRefuses:
    def test_unknown_precision(self, device: torch.device) -> None:
        with pytest.raises(
            BackendError, match=r"expected a precision of fp16, bf16, fp32 .*'int8'"
        ):
            TritonUNet(make_unet((5,), 1).to(device), precision="int8")  # type: ignore[arg-type]

    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(INTERPRETER_VARIABLE, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(BackendError, match="PyTorch finds none; install the NVIDIA driver"):
            open_engine("triton", make_unet((5,), 1).cpu(), threads=1)

    def test_weights_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(INTERPRETER_VARIABLE, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(BackendError, match=r"got cpu; move network .* unet\.to\('cuda'\)"):
            open_engine("triton", make_unet((5,), 1).cpu(), threads=1)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = builtins.__import__

        def absent(name: str, *rest: Any) -> Any:
            if name == "triton":
                raise ImportError("No module named 'triton'")
            return plain(name, *rest)

        monkeypatch.setattr(builtins, "__import__", absent)
        with pytest.raises(BackendError, match="pip install triton"):
            open_engine("triton", make_unet((5,), 1), threads=1)

    def test_tensors_elsewhere(self, device: torch.device) -> None:
        mask, unet = MASKS["corners"], make_unet((5,), 1).to(device)
        plan = make_plan(mask, unet).to(torch.device("meta"))
        with pytest.raises(BackendError, match=r"expected features and plan on .* and meta; move"):
            TritonUNet(unet)(make_features(mask).to(device), plan)

    def test_a_gpu_that_refuses_a_kernel(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: Any, **options: Any) -> None:
            raise triton.OutOfResources(300_000, 232_448, "shared memory")

        monkeypatch.setattr(module, "convolve", refuse)
        mask, unet = MASKS["corners"], make_unet((5,), 1).to(device)
        with pytest.raises(BackendError, match=r"float16, it does not .*shared memory.* precision"):
            TritonUNet(unet)(make_features(mask).to(device), make_plan(mask, unet).to(device))


@NEEDS_GPU
@pytest.mark.parametrize("precision", LARGEST_ERROR)
@pytest.mark.parametrize("widths", [(32, 64, 128, 256, 512, 1024), (16, 24, 40)], ids=str)
def test_equals_pytorch_on_a_gpu(widths: tuple[int, ...], precision: Precision) -> None:
    """Large enough that tiles differ, taps are shared out and tuning has something to choose."""
    assert not runtime.INTERPRETED
    unet = make_unet(widths, 2).cuda()
    mask = torch.rand(2, 1, 150, 203, generator=torch.Generator().manual_seed(5)) < 0.3
    features, plan = make_features(mask).cuda(), make_plan(mask, unet).to(torch.device("cuda"))
    torch.backends.cuda.matmul.allow_tf32 = False
    expected = PyTorchUNet(unet)(features, plan)
    logits = TritonUNet(unet, precision=precision)(features, plan)
    error = (logits - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 2 * LARGEST_ERROR[precision]
    assert torch.equal(TritonUNet(unet, precision=precision)(features, plan), logits)
