# SPDX-License-Identifier: Apache-2.0
"""Engines built for real by TensorRT for RTX, which needs no GPU for that, and their cache."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from conftest import make_tiny_bundle, with_sections, write_pointwise_onnx
from onnx import TensorProto, helper

from sparserefine_ros.bundle import Bundle, seal_bundle
from sparserefine_ros.dense import engines
from sparserefine_ros.dense.backends import installed_package
from sparserefine_ros.dense.engine_cache import EngineCache
from sparserefine_ros.dense.engines import Engine, network_shapes, obtain_engine
from sparserefine_ros.dense.options import EngineOptions, Progress, Report, silent
from sparserefine_ros.dense.tensorrt_library import (
    PORTABLE,
    Library,
    describe_validity,
    load_library,
)
from sparserefine_ros.errors import BackendError, BundleError

pytestmark = pytest.mark.skipif(
    installed_package("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed"
)

STREET = Path(__file__).parents[2] / "models" / "street_small"
PICTURE = ((48, 64),)


@pytest.fixture(scope="module")
def library() -> Library:
    load_library.cache_clear()
    return load_library("tensorrt_rtx")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch, library: Library) -> dict[str, int]:
    """How often a model was parsed and an engine built."""
    counted = {"parsed": 0, "built": 0}

    def count(kind: Any, method: str, name: str) -> None:
        original = getattr(kind, method)

        def counting(*arguments: Any) -> Any:
            counted[name] += 1
            return original(*arguments)

        monkeypatch.setattr(kind, method, counting)

    count(library.trt.OnnxParser, "parse", "parsed")
    count(library.trt.Builder, "build_serialized_network", "built")
    return counted


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def obtain(
    bundle: Bundle,
    library: Library,
    cache: Path,
    *,
    report: Report = silent,
    target: str = PORTABLE,
    **options: Any,
) -> Engine:
    how = EngineOptions(cache=cache, **{"picture_sizes": PICTURE, **options})
    return obtain_engine(bundle, library, options=how, target=target, report=report)


def foreign_bundle(folder: Path, nodes: Sequence[onnx.NodeProto], sides: list[Any]) -> Bundle:
    """A bundle of two classes around any graph from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sides)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "model.onnx")
    return sealed_bundle(folder)


def sealed_bundle(folder: Path, *, classes: int = 3, **taken: Any) -> Bundle:
    """Seal a `bundle.yaml` around `model.onnx`."""
    fields = {
        "name": "foreign",
        "licence": "none",
        "classes": [{"name": f"c{i}", "colour": [i, i, i]} for i in range(classes)],
        "dense": {"file": {"path": "model.onnx"}, "input": taken or {"scale": 0.5}},
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return seal_bundle(folder)


@pytest.fixture(scope="module")
def street(
    tmp_path_factory: pytest.TempPathFactory, library: Library
) -> tuple[Engine, Path, list[Progress]]:
    """One build of the default bundle, in half precision, and how it went."""
    cache = tmp_path_factory.mktemp("street") / "engines"
    told: list[Progress] = []
    bundle = Bundle.open(STREET)
    engine = obtain(bundle, library, cache, report=told.append, precision="fp16")
    return engine, cache, told


class TestShippedBundle:
    def test_is_built_and_recorded(self, street: Any, library: Library) -> None:
        engine, _, _ = street
        record = engine.cached.record
        assert engine.built
        assert record.key.shapes == ((1, 3, 24, 32),)
        assert (record.key.flavour, record.key.version) == ("tensorrt_rtx", library.version)
        assert record.key.onnx_sha256 == Bundle.open(STREET).spec.dense.file.sha256
        assert record.size == len(engine.cached.data) > 1_000_000
        assert record.build_s > 0

    def test_a_second_start_neither_parses_nor_builds(
        self, street: Any, library: Library, counts: dict[str, int]
    ) -> None:
        engine, cache, _ = street
        again = obtain(Bundle.open(STREET), library, cache, precision="fp16", build=False)
        assert not again.built
        assert again.cached == engine.cached
        assert counts == {"parsed": 0, "built": 0}

    def test_progress_grows(self, street: Any) -> None:
        shares = [progress.share for progress in street[2]]
        assert shares[0] == 0.0
        assert shares[-1] == 1.0
        assert shares == sorted(shares)
        assert len(set(shares)) > 10

    def test_the_library_tells_its_engine_from_a_malformed_one(
        self, street: Any, library: Library
    ) -> None:
        data = street[0].cached.data
        assert describe_validity(library, data) == ""
        assert describe_validity(library, b"no engine" * 100) == "malformed engine"

    def test_half_precision_makes_a_smaller_engine(
        self, street: Any, library: Library, tmp_path: Path
    ) -> None:
        whole = obtain(Bundle.open(STREET), library, tmp_path)
        assert street[0].cached.record.size < 0.7 * whole.cached.record.size


def has_open(process: int, path: Path) -> bool:
    """Whether a process has a file open."""
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            if descriptor.resolve() == path:
                return True
    return False


class TestCache:
    def test_a_changed_wish_builds_another_engine(
        self, bundle: Bundle, library: Library, tmp_path: Path, counts: dict[str, int]
    ) -> None:
        first = obtain(bundle, library, tmp_path)
        others = [
            obtain(bundle, library, tmp_path, picture_sizes=((48, 72),)),
            obtain(bundle, library, tmp_path, precision="fp16"),
            obtain(bundle, library, tmp_path, target="compute capability 7.5"),
        ]
        assert all(engine.built for engine in others)
        assert counts == {"parsed": 4, "built": 4}
        assert len(EngineCache(tmp_path).digests()) == 4
        assert not obtain(bundle, library, tmp_path).built
        assert first.built

    @pytest.mark.parametrize("damage", ["cut", "hash", "json"])
    def test_a_damaged_engine_is_built_again_and_the_log_says_why(
        self,
        bundle: Bundle,
        library: Library,
        tmp_path: Path,
        damage: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        digest = obtain(bundle, library, tmp_path).cached.record.key.digest
        engine, record = tmp_path / f"{digest}.engine", tmp_path / f"{digest}.json"
        if damage == "cut":
            engine.write_bytes(engine.read_bytes()[: engine.stat().st_size // 2])
        elif damage == "hash":
            fields = json.loads(record.read_text())
            record.write_text(json.dumps({**fields, "sha256": "0" * 64}))
        else:
            record.unlink()
        with pytest.raises(BackendError, match=r"is damaged: .*sparserefine engine build"):
            obtain(bundle, library, tmp_path, build=False)
        with caplog.at_level(logging.WARNING):
            assert obtain(bundle, library, tmp_path).built
        reason = {"cut": "bytes instead of", "hash": "SHA-256", "json": "cannot be read"}[damage]
        assert any(
            "building the engine again" in line and reason in line for line in caplog.messages
        )
        assert not obtain(bundle, library, tmp_path, build=False).built

    def test_an_engine_of_another_version_is_told_and_left_alone(
        self,
        bundle: Bundle,
        library: Library,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        first = obtain(bundle, library, tmp_path).cached
        cache = EngineCache(tmp_path)
        old = first.record.key.model_copy(update={"version": "0.9"})
        cache.remove(first.record.key.digest)
        cache.store(first.record.model_copy(update={"key": old}), first.data)
        with caplog.at_level(logging.INFO):
            assert obtain(bundle, library, tmp_path).built
        expected = f"was built for version 0.9 instead of {library.version}"
        assert any(expected in line for line in caplog.messages)
        assert len(cache.digests()) == 2

    def test_an_engine_the_runtime_refuses_is_replaced(
        self, bundle: Bundle, library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        obtain(bundle, library, tmp_path)
        how = EngineOptions(cache=tmp_path, picture_sizes=PICTURE)
        engine = obtain_engine(
            bundle,
            library,
            options=how,
            target=PORTABLE,
            report=silent,
            refused="version mismatch",
        )
        assert engine.built
        assert "building the engine again: version mismatch" in caplog.messages

    def test_told_not_to_build(self, bundle: Bundle, library: Library, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match=r"there is none; run `sparserefine engine build`"):
            obtain(bundle, library, tmp_path / "none", build=False)
        assert not (tmp_path / "none").exists()

    def test_a_folder_that_cannot_be_written_is_told_before_the_work(
        self, bundle: Bundle, library: Library, tmp_path: Path, counts: dict[str, int]
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(BackendError, match="cannot write engines to"):
            obtain(bundle, library, tmp_path / "file" / "engines")
        assert counts == {"parsed": 0, "built": 0}

    def test_of_two_processes_one_builds(
        self, tiny_bundle: Path, tmp_path: Path, package_environment: dict[str, str]
    ) -> None:
        command = [sys.executable, "-m", "sparserefine_ros.cli", "engine", "build"]
        command += [str(tiny_bundle), "--backend", "tensorrt_rtx", "--picture-sizes", "64x48"]
        command += ["--engine-cache", str(tmp_path)]
        with EngineCache(tmp_path).lock():
            processes = [
                subprocess.Popen(
                    command, env=package_environment, stdout=subprocess.PIPE, text=True
                )
                for _ in range(2)
            ]
            # Until both wait for the lock, and so have both found the cache empty.
            deadline = time.monotonic() + 300.0
            while not all(has_open(process.pid, tmp_path / "lock") for process in processes):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        outputs = sorted(process.communicate(timeout=300)[0] for process in processes)
        assert [process.returncode for process in processes] == [0, 0]
        assert ": built in " in outputs[0]
        assert ": taken from the cache in " in outputs[1]
        assert len(EngineCache(tmp_path).digests()) == 1


class TestBadModels:
    @pytest.mark.parametrize(
        ("operator", "domain"), [("Det", ""), ("Warp", "acme")], ids=["standard", "custom"]
    )
    def test_an_unsupported_operator_is_named(
        self, operator: str, domain: str, library: Library, tmp_path: Path
    ) -> None:
        nodes = [
            helper.make_node("Relu", ["x"], ["r"], name="first"),
            helper.make_node(operator, ["r"], ["y"], name="bend_it", domain=domain),
        ]
        bundle = foreign_bundle(tmp_path, nodes, [1, 3, "h", "w"])
        message = rf"cannot take the dense model: {operator} at node 1 \(bend_it\), .*onnxruntime"
        with pytest.raises(BackendError, match=message):
            obtain(bundle, library, tmp_path / "engines")
        assert EngineCache(tmp_path / "engines").digests() == []

    def test_wrong_rank_is_told_before_the_build(
        self, library: Library, tmp_path: Path, counts: dict[str, int]
    ) -> None:
        bundle = foreign_bundle(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], [1, 3, "h"])
        with pytest.raises(
            BundleError, match=r"4-D input of 3 channels \(NCHW\), got \[1, 3, '\?'"
        ):
            obtain(bundle, library, tmp_path / "engines")
        assert counts == {"parsed": 1, "built": 0}

    def test_wrong_number_of_classes_is_told_before_the_build(
        self, library: Library, tmp_path: Path, counts: dict[str, int]
    ) -> None:
        write_pointwise_onnx(tmp_path / "model.onnx", np.ones((4, 3)), np.ones(4))
        with pytest.raises(BundleError, match="4-D output and 3 channels"):
            obtain(sealed_bundle(tmp_path), library, tmp_path / "engines")
        assert counts["built"] == 0

    def test_an_open_size_needs_the_size_of_the_pictures(
        self, bundle: Bundle, library: Library, tmp_path: Path, counts: dict[str, int]
    ) -> None:
        message = r"expected the size of the camera's pictures for an engine of tiny.*picture_sizes"
        with pytest.raises(BackendError, match=message):
            obtain(bundle, library, tmp_path, picture_sizes=())
        assert counts["parsed"] == 0

    def test_a_size_the_network_cannot_take(self, library: Library, tmp_path: Path) -> None:
        # Rows and columns must be equal for the sum.
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
            helper.make_node("Add", ["x", "t"], ["y"]),
        ]
        bundle = foreign_bundle(tmp_path, nodes, [1, 3, "h", "w"])
        with pytest.raises(BackendError, match=r"cannot build the engine: .*\w"):
            obtain(bundle, library, tmp_path / "engines")
        assert obtain(bundle, library, tmp_path / "engines", picture_sizes=((32, 32),)).built

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"garbage", "cannot take the dense model: MODEL_DESERIALIZE"),
            (b"this is no model", "expected an ONNX model with an input"),
        ],
    )
    def test_garbage(self, content: bytes, message: str, library: Library, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(BackendError, match=message):
            obtain(sealed_bundle(tmp_path), library, tmp_path / "engines")


def sized(*sizes: tuple[int, int]) -> EngineOptions:
    return EngineOptions(picture_sizes=sizes)


class TestShapes:
    def test_one_size(self, bundle: Bundle) -> None:
        assert network_shapes(bundle, sized((75, 101))) == ((1, 3, 36, 52),)

    def test_a_range(self, bundle: Bundle, library: Library, tmp_path: Path) -> None:
        sizes = ((32, 40), (48, 64), (64, 80))
        shapes = ((1, 3, 16, 20), (1, 3, 24, 32), (1, 3, 32, 40))
        assert network_shapes(bundle, sized(*sizes)) == shapes
        engine = obtain(bundle, library, tmp_path, picture_sizes=sizes)
        assert engine.cached.record.key.shapes == shapes

    def test_several_pictures_at_once(
        self, library: Library, tmp_path: Path, bundle: Bundle
    ) -> None:
        sizes = ((32, 40), (48, 64), (64, 80))
        one = network_shapes(bundle, EngineOptions(picture_sizes=PICTURE, max_batch=4))
        assert [shape[0] for shape in one] == [1, 4, 4]
        assert {shape[1:] for shape in one} == {(3, 24, 32)}
        shapes = network_shapes(bundle, EngineOptions(picture_sizes=sizes, max_batch=2))
        assert shapes == ((1, 3, 16, 20), (2, 3, 24, 32), (2, 3, 32, 40))
        built = [
            obtain(bundle, library, tmp_path, picture_sizes=PICTURE, max_batch=count).cached
            for count in (1, 2)
        ]
        assert [engine.record.key.shapes[-1][0] for engine in built] == [1, 2]
        assert len(built[0].data) > 0

    def test_a_model_for_one_picture_gets_no_engine_for_more(
        self, library: Library, tmp_path: Path
    ) -> None:
        write_pointwise_onnx(
            tmp_path / "model.onnx", np.ones((3, 3)), np.ones(3), input_size=(8, 12)
        )
        bundle = sealed_bundle(tmp_path, size=[8, 12])
        with pytest.raises(BundleError, match="a batch axis of 1 for max_batch 2"):
            obtain(bundle, library, tmp_path / "engines", max_batch=2)

    def test_a_range_of_one_network_size_is_one_size(self, bundle: Bundle) -> None:
        assert network_shapes(bundle, sized((47, 64), (48, 64), (49, 64))) == ((1, 3, 24, 32),)

    def test_a_fixed_bundle_in_nhwc(self, library: Library, tmp_path: Path) -> None:
        write_pointwise_onnx(
            tmp_path / "model.onnx", np.ones((3, 3)), np.ones(3), input_size=(8, 12), layout="NHWC"
        )
        bundle = sealed_bundle(tmp_path, size=[8, 12], layout="NHWC")
        engine = obtain(bundle, library, tmp_path / "engines", picture_sizes=())
        assert engine.cached.record.key.shapes == ((1, 8, 12, 3),)

    def test_the_bundle_fixes_what_the_graph_leaves_open(self, tmp_path: Path) -> None:
        folder = make_tiny_bundle(tmp_path / "tiny")
        dense = Bundle.open(folder).spec.dense.model_dump(mode="json", exclude_none=True)
        dense["input"] = {"size": [20, 28]}
        bundle = with_sections(folder, dense=dense)
        assert network_shapes(bundle, sized(*PICTURE)) == ((1, 3, 20, 28),)


def test_weights_in_a_second_file_are_refused(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.onnx"
    write_pointwise_onnx(model, np.ones((3, 3)), np.ones(3))
    where = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    onnx.save(onnx.load(model), model, **where)
    monkeypatch.setattr(engines, "build_engine", lambda *_, **__: pytest.fail("reached"))
    with pytest.raises(BundleError, match="expected an ONNX model in one file"):
        obtain(sealed_bundle(tmp_path), library, tmp_path / "engines")
