# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from conftest import NO_DIGEST, make_tiny_bundle, random_statistics
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparserefine_ros.bundle import BUNDLE_FILE, Bundle, seal_bundle, sealed
from sparserefine_ros.bundle_spec import FileSpec, UNetRefinerSpec
from sparserefine_ros.configuration import write_yaml
from sparserefine_ros.errors import BundleError
from sparserefine_ros.refiner import Refiner, load_refiner
from sparserefine_ros.weights import save_weights

pytestmark = pytest.mark.usefixtures("engine")

WEIGHTS = "refiner.safetensors"


def reseal(folder: Path, **changes: object) -> Bundle:
    """Change fields of the refiner section and correct the digests, as a user's edit would."""
    spec = Bundle.open(folder).spec
    assert spec.refiner is not None
    spec = spec.model_copy(update={"refiner": spec.refiner.model_copy(update=changes)})
    write_yaml(folder / BUNDLE_FILE, sealed(spec, folder), heading="changed")
    return Bundle.open(folder)


def with_weights(folder: Path, weights: dict[str, Tensor]) -> Bundle:
    """The bundle with other weights and the right digest for them."""
    save_file(weights, folder / WEIGHTS)
    return seal_bundle(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle that the test may change."""
    return make_tiny_bundle(tmp_path / "tiny")


class TestLoading:
    def test_round_trip(self, tmp_path: Path) -> None:
        spec = UNetRefinerSpec(
            file=FileSpec(path=WEIGHTS, sha256=NO_DIGEST), widths=(4, 6, 8), blocks=2
        )
        refiner = Refiner(spec, 3, 5)
        random_statistics(refiner)
        save_weights(refiner, tmp_path / WEIGHTS)
        assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
        found = load_file(tmp_path / WEIGHTS)
        expected = refiner.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())

    def test_loads_in_evaluation_mode(self, folder: Path) -> None:
        refiner = load_refiner(Bundle.open(folder))
        assert not any(part.training for part in refiner.modules())
        weights = load_file(folder / WEIGHTS)
        assert all(torch.equal(weights[key], value) for key, value in refiner.state_dict().items())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"widths": (8, 16)}, r"expected \[9, 16, 16\], got \[9, 12, 12\]"),
            ({"widths": (8,)}, "is unknown"),
            ({"widths": (8, 12, 12)}, "is missing"),
            ({"blocks": 2}, r"after\.1\.\S+ is missing"),
            (
                {"inputs": ("rgb",)},
                r"stem\.kernel: expected \[9, 3, 8\], got \[9, 6, 8\]",
            ),
            ({"ensembler": "direct"}, r"ensembler\.gate\.0\.bias is unknown"),
        ],
    )
    def test_weights_that_do_not_fit(
        self, folder: Path, changes: dict[str, object], message: str
    ) -> None:
        bundle = reseal(folder, **changes)
        with pytest.raises(BundleError, match=message) as caught:
            load_refiner(bundle)
        assert "does not fit the refiner section of bundle.yaml" in str(caught.value)

    def test_many_mistakes_are_counted(self, folder: Path) -> None:
        with pytest.raises(BundleError, match=r"and \d+ more$"):
            load_refiner(reseal(folder, widths=(4, 6)))

    def test_one_wrong_shape(self, folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        weights["extractor.head.bias"] = torch.zeros(4)
        message = r"bundle.yaml: extractor\.head\.bias: expected \[3\], got \[4\]$"
        with pytest.raises(BundleError, match=message):
            load_refiner(with_weights(folder, weights))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, folder: Path, value: float) -> None:
        weights = load_file(folder / WEIGHTS)
        weights["extractor.stem.kernel"][0, 0, 0] = value
        with pytest.raises(BundleError, match=r"extractor\.stem\.kernel holds NaN or infinity"):
            load_refiner(with_weights(folder, weights))

    def test_a_variance_below_zero(self, folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        name = next(key for key in weights if key.endswith("running_var"))
        weights[name][0] = -0.5
        with pytest.raises(BundleError, match=f"{name} holds a variance below 0"):
            load_refiner(with_weights(folder, weights))

    def test_no_pickle_is_ever_loaded(self, folder: Path, tmp_path: Path) -> None:
        trap = tmp_path / "trap"

        class Trap:
            def __reduce__(self) -> tuple[object, ...]:
                return Path.touch, (trap,)

        for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
            write({"extractor.head.bias": Trap()}, folder / WEIGHTS)
            bundle = seal_bundle(folder)
            with pytest.raises(BundleError, match="not a readable safetensors file"):
                load_refiner(bundle)
        assert not trap.exists()

    def test_a_bundle_without_refiner(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        plain = bundle.spec.model_copy(update={"refiner": None})
        with pytest.raises(BundleError, match="tiny has no refiner; train one"):
            load_refiner(Bundle(folder, plain, bundle.digest))
