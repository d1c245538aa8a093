# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sparserefine_ros.bundle import BUNDLE_FILE, Bundle, create_bundle, seal_bundle, sealed
from sparserefine_ros.bundle_spec import BundleSpec, DenseInput, EntropySelectorSpec
from sparserefine_ros.errors import BundleError

DENSE, REFINER = b"dense model", b"refiner weights"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FIELDS: dict[str, Any] = {
    "format": 1,
    "name": "hand",
    "licence": "Apache-2.0",
    "classes": [{"name": "road", "colour": [1, 2, 3]}, {"name": "sky", "colour": [4, 5, 255]}],
    "dense": {
        "file": {"path": "dense.onnx", "sha256": sha256(DENSE)},
        "input": {
            "size": [256, 512],
            "name": "pixels",
            "layout": "NHWC",
            "channel_order": "BGR",
            "mean": [1.5, 2.5, 3.5],
            "std": [10.0, 20.0, 30.0],
        },
        "output": {"name": "scores", "kind": "probabilities", "stride": 4, "layout": "NHWC"},
    },
    "selector": {"kind": "entropy", "threshold_nats": 0.25, "max_pixels": 1000},
    "refiner": {
        "file": {"path": "refiner.safetensors", "sha256": sha256(REFINER)},
        "widths": [8, 16, 32],
        "blocks": 1,
        "inputs": ["rgb", "logits"],
        "bounds": "data",
        "channel_order": "BGR",
        "ensembler": "entropy",
    },
    "training": {"data": ["camvid", "street"], "epochs": 3, "miou": 0.5, "note": "x"},
}


def fields_with(path: str, value: object) -> dict[str, Any]:
    """Copy of `FIELDS` with the value at a dotted path replaced, or removed for `...`."""
    fields = copy.deepcopy(FIELDS)
    place = fields
    *parents, last = path.split(".")
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return fields


def write_bundle(folder: Path, fields: dict[str, Any] = FIELDS) -> Path:
    folder.mkdir(parents=True)
    (folder / BUNDLE_FILE).write_text(yaml.safe_dump(fields), encoding="utf-8")
    (folder / "dense.onnx").write_bytes(DENSE)
    (folder / "refiner.safetensors").write_bytes(REFINER)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """New content for both files, outside any bundle."""
    place = tmp_path / "sources"
    place.mkdir()
    paths = {name: place / name for name in ("dense.onnx", "refiner.safetensors")}
    for name, path in paths.items():
        path.write_bytes(f"new {name}".encode())
    return paths


class TestOpen:
    def test_reads_every_field(self, folder: Path) -> None:
        bundle = Bundle.open(str(folder))
        spec = bundle.spec
        assert (bundle.name, bundle.class_names) == ("hand", ("road", "sky"))
        assert spec.dense.input.size == (256, 512)
        assert spec.dense.input.normalisation.channel_order == "BGR"
        assert spec.dense.input.mean == (1.5, 2.5, 3.5)
        assert spec.dense.input.std == (10.0, 20.0, 30.0)
        assert spec.dense.output.stride == 4
        assert spec.selector == EntropySelectorSpec(threshold_nats=0.25, max_pixels=1000)
        assert spec.refiner is not None
        assert (spec.refiner.widths, spec.refiner.blocks) == ((8, 16, 32), 1)
        assert (spec.refiner.bounds, spec.refiner.ensembler) == ("data", "entropy")
        assert spec.refiner_channels() == 5
        assert bundle.path(spec.dense.file) == folder / "dense.onnx"
        assert dict(spec.training)["data"] == ("camvid", "street")

    def test_palette(self, folder: Path) -> None:
        palette = Bundle.open(folder).palette
        assert palette.dtype == np.uint8
        assert palette.shape == (256, 3)
        assert palette[:2].tolist() == [[1, 2, 3], [4, 5, 255]]
        assert not palette[2:].any()

    def test_digest_is_that_of_the_description(self, folder: Path) -> None:
        before = Bundle.open(folder).digest
        assert before == sha256((folder / BUNDLE_FILE).read_bytes())
        with (folder / BUNDLE_FILE).open("a") as stream:
            stream.write("# a comment\n")
        assert Bundle.open(folder).digest != before

    def test_a_plain_dense_segmenter_needs_neither_selector_nor_refiner(
        self, tmp_path: Path
    ) -> None:
        fields = {k: v for k, v in FIELDS.items() if k not in ("selector", "refiner", "training")}
        spec = Bundle.open(write_bundle(tmp_path / "plain", fields)).spec
        assert spec.refiner is None
        assert [file.path for file in spec.files()] == ["dense.onnx"]

    @pytest.mark.parametrize("name", ["dense.onnx", "refiner.safetensors"])
    @pytest.mark.parametrize("position", [0, 5, -1])
    def test_a_changed_byte(self, folder: Path, name: str, position: int) -> None:
        content = bytearray((folder / name).read_bytes())
        content[position] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(
            BundleError, match=rf"{re.escape(name)}: expected SHA-256 .* got .*seal"
        ):
            Bundle.open(folder)

    def test_a_file_cut_short(self, folder: Path) -> None:
        (folder / "dense.onnx").write_bytes(DENSE[:-1])
        with pytest.raises(BundleError, match="not copied whole"):
            Bundle.open(folder)

    @pytest.mark.parametrize("name", ["dense.onnx", "refiner.safetensors"])
    def test_a_missing_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(BundleError, match=rf"{re.escape(name)} named in bundle.yaml; restore"):
            Bundle.open(folder)

    def test_what_is_no_bundle(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
            with pytest.raises(BundleError, match=r"expected a bundle folder with bundle\.yaml"):
                Bundle.open(place)


class TestFields:
    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("colour", "red", "colour: unknown field"),
            ("dense.input.mena", [0, 0, 0], r"dense\.input\.mena: unknown field"),
            ("refiner.file.size", 3, r"refiner\.file\.size: unknown field"),
            ("name", ..., "name: required field is missing"),
            ("dense.file", ..., r"dense\.file: required field is missing"),
            ("name", "", "name: "),
            ("format", 2, "format: .*1"),
            ("classes", FIELDS["classes"][:1], "classes: .*2"),
            ("classes", [FIELDS["classes"][0]] * 2, "expected unique class names"),
            ("dense.input.size", [0, 5], r"dense\.input\.size\.0: .*equal to 1, got 0"),
            ("dense.input.size", ..., "expected either size or scale"),
            ("dense.input.scale", 0.5, "expected either size or scale"),
            ("dense.input.std", [1, 0, 1], r"dense\.input\.std\.1: .*equal to 0\.000001"),
            ("dense.input.layout", "CHW", r"dense\.input\.layout: .*NCHW.*NHWC.*got 'CHW'"),
            ("dense.output.kind", "labels", r"dense\.output\.kind: .*logits.*probabilities"),
            ("dense.output.stride", 0, r"dense\.output\.stride: "),
            ("dense.file.sha256", "abc", r"dense\.file\.sha256: .*got 'abc'"),
            ("selector", ..., "expected a selector beside the refiner"),
            ("selector.kind", "magic", r"selector\.kind: .*entropy"),
            ("selector", "entropy", r"selector: expected a mapping of fields.*got 'entropy'"),
            ("refiner", ["a"], r"refiner: expected a mapping of fields, such as kind, got"),
            ("selector.threshold_nats", -0.1, r"selector\.threshold_nats: .*got -0.1"),
            ("selector.threshold_nats", 0.7, r"at most log\(classes\) = 0.693"),
            ("selector.threshold_nats", float("nan"), r"threshold_nats"),
            ("selector.max_pixels", -1, r"selector\.max_pixels: "),
            ("refiner.widths", [], r"refiner\.widths: "),
            ("refiner.widths", [8, 0], r"refiner\.widths\.1: "),
            ("refiner.inputs", [], r"refiner\.inputs: "),
            ("refiner.inputs", ["depth"], r"refiner\.inputs\.0: .*rgb.*logits"),
            ("dense.input.std", [1, math.inf, 1], r"dense\.input\.std\.1: "),
            ("dense.input.mean", [1, math.nan, 1], r"dense\.input\.mean\.1: "),
            ("dense.input.size", [4, 10_000_000], r"dense\.input\.size\.1: .*16384"),
            ("refiner.widths", [65536], r"refiner\.widths\.0: .*8192"),
            ("refiner.widths", [8] * 11, r"refiner\.widths: .*10 items"),
            ("refiner.blocks", 100_000, r"refiner\.blocks: .*64"),
            ("refiner.inputs", ["rgb", "rgb"], "expected each feature once"),
            ("refiner.ensembler", "vote", r"refiner\.ensembler: .*gated"),
        ],
    )
    def test_a_mistake(self, tmp_path: Path, path: str, value: object, message: str) -> None:
        with pytest.raises(BundleError, match=message):
            Bundle.open(write_bundle(tmp_path / "wrong", fields_with(path, value)))

    def test_colours_are_bytes(self, tmp_path: Path) -> None:
        classes = [{"name": "a", "colour": [0, 0, 256]}, {"name": "b", "colour": [0, -1, 0]}]
        with pytest.raises(BundleError, match=r"classes\.0\.colour\.2: .*classes\.1\.colour\.1: "):
            Bundle.open(write_bundle(tmp_path / "wrong", fields_with("classes", classes)))

    def test_several_mistakes_are_reported_together(self, tmp_path: Path) -> None:
        fields = fields_with("dense.output.stride", -3)
        fields["selector"]["treshold"] = 1
        del fields["licence"]
        fields["refiner"]["blocks"] = "many"
        with pytest.raises(BundleError) as caught:
            Bundle.open(write_bundle(tmp_path / "wrong", fields))
        for part in ("dense.output.stride", "selector.treshold", "licence", "refiner.blocks"):
            assert f"{part}: " in str(caught.value)
        assert str(tmp_path / "wrong" / BUNDLE_FILE) in str(caught.value)

    @pytest.mark.parametrize(
        "path",
        ["../secret", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\n", "a b", "ä"],
    )
    @pytest.mark.parametrize("section", ["dense", "refiner"])
    def test_files_lie_in_the_folder_itself(self, tmp_path: Path, section: str, path: str) -> None:
        (tmp_path / "secret").write_bytes(DENSE)
        fields = fields_with(f"{section}.file.path", path)
        fields[section]["file"]["sha256"] = sha256(DENSE)
        with pytest.raises(BundleError, match=rf"{section}\.file\.path: "):
            Bundle.open(write_bundle(tmp_path / "wrong", fields))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "expected a mapping of fields, got NoneType"),
            (b"- a\n- b\n", "expected a mapping of fields, got list"),
            (b"a: [1,\n", "not valid YAML"),
            (b"a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
            (b"name: \xff\xfe\n", "bundle.yaml"),
            (b"name: \x00\n", "not valid YAML"),
        ],
        ids=["empty", "list", "cut", "python-tag", "not-utf8", "nul"],
    )
    def test_a_description_that_is_no_mapping(
        self, folder: Path, content: bytes, message: str
    ) -> None:
        (folder / BUNDLE_FILE).write_bytes(content)
        with pytest.raises(BundleError, match=message):
            Bundle.open(folder)


class TestLowResSize:
    @pytest.mark.parametrize(
        ("scale", "step", "full", "low"),
        [
            (0.5, 1, (1024, 2048), (512, 1024)),
            (0.5, 4, (360, 480), (180, 240)),
            (0.5, 4, (75, 101), (36, 52)),
            (0.5, 32, (360, 480), (192, 256)),
            (1.0, 1, (7, 9), (7, 9)),
            (0.25, 4, (1, 1), (4, 4)),
            (0.001, 1, (10, 10), (1, 1)),
        ],
    )
    def test_from_a_scale(
        self, scale: float, step: int, full: tuple[int, int], low: tuple[int, int]
    ) -> None:
        assert DenseInput(scale=scale, multiple_of=step).low_res_size(full) == low

    def test_fixed(self) -> None:
        assert DenseInput(size=(3, 5)).low_res_size((1024, 2048)) == (3, 5)


class TestCreate:
    def test_round_trip(self, tmp_path: Path, sources: dict[str, Path]) -> None:
        spec = BundleSpec.model_validate(FIELDS)
        folder = tmp_path / "deep" / "new"
        bundle = create_bundle(folder, spec, sources)
        assert bundle == Bundle.open(folder)
        assert bundle.spec == sealed(spec, folder)
        assert bundle.spec.dense.file.sha256 == sha256(b"new dense.onnx")
        without_digests = bundle.spec.model_dump()
        expected = spec.model_dump()
        for fields in (without_digests, expected):
            del fields["dense"]["file"]["sha256"]
            del fields["refiner"]["file"]["sha256"]
        assert without_digests == expected
        assert contents(folder).keys() == {BUNDLE_FILE, "dense.onnx", "refiner.safetensors"}
        assert sorted(path.name for path in folder.parent.iterdir()) == ["new"]

    def test_replaces_a_bundle_also_from_its_own_files(
        self, folder: Path, sources: dict[str, Path]
    ) -> None:
        spec = BundleSpec.model_validate(FIELDS)
        own = {"dense.onnx": folder / "dense.onnx"}
        create_bundle(folder, spec, {**sources, **own})
        found = contents(folder)
        assert found["dense.onnx"] == DENSE
        assert found["refiner.safetensors"] == b"new refiner.safetensors"

    @pytest.mark.parametrize("broken", [False, True])
    def test_what_is_not_the_bundles_stays(
        self, folder: Path, sources: dict[str, Path], broken: bool
    ) -> None:
        """Its own files go with it, unless nobody can tell which they are."""
        spec = BundleSpec.model_validate(FIELDS).model_copy(update={"refiner": None})
        (folder / "LICENSE").write_text("mine")
        (folder / "notes").mkdir()
        (folder / "notes" / "drive.txt").write_text("wet")
        if broken:
            (folder / BUNDLE_FILE).write_text("format: [")
        create_bundle(folder, spec, sources)
        assert (folder / "LICENSE").read_text() == "mine"
        assert (folder / "notes" / "drive.txt").read_text() == "wet"
        assert (folder / "refiner.safetensors").exists() == broken
        assert Bundle.open(folder).spec.refiner is None

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path, sources: dict[str, Path]) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(BundleError, match=r"cannot write the bundle .*/file/new"):
            create_bundle(tmp_path / "file" / "new", BundleSpec.model_validate(FIELDS), sources)

    def test_the_folder_one_stands_in(
        self, folder: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder)
        created = create_bundle(Path(), BundleSpec.model_validate(FIELDS), sources)
        assert created.folder == folder
        assert contents(folder)["dense.onnx"] == b"new dense.onnx"

    def test_a_missing_source_leaves_nothing(
        self, tmp_path: Path, sources: dict[str, Path]
    ) -> None:
        del sources["refiner.safetensors"]
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(BundleError, match=r"expected a file for 'refiner.safetensors'"):
            create_bundle(tmp_path / "new", BundleSpec.model_validate(FIELDS), sources)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_missing_source_leaves_the_old_bundle(
        self, folder: Path, sources: dict[str, Path]
    ) -> None:
        sources["dense.onnx"].unlink()
        before = contents(folder)
        with pytest.raises(BundleError, match=r"expected a file for 'dense.onnx'"):
            create_bundle(folder, BundleSpec.model_validate(FIELDS), sources)
        assert contents(folder) == before

    def test_a_description_that_does_not_open_leaves_the_old_bundle(
        self, folder: Path, sources: dict[str, Path]
    ) -> None:
        spec = BundleSpec.model_validate(FIELDS)
        # model_copy does not validate; log(2 classes) is 0.69.
        spec = spec.model_copy(update={"selector": EntropySelectorSpec(threshold_nats=3.0)})
        before = contents(folder)
        with pytest.raises(BundleError, match=r"at most log\(classes\)"):
            create_bundle(folder, spec, sources)
        assert contents(folder) == before
        Bundle.open(folder)

    def test_a_failing_rename_leaves_the_old_bundle(
        self, folder: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename, before = Path.rename, contents(folder)

        def fail_into_place(self: Path, target: Path) -> Path:
            if Path(target) == folder and self.name == folder.name:
                raise OSError("no space left on device")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail_into_place)
        with pytest.raises(BundleError, match="no space left"):
            create_bundle(folder, BundleSpec.model_validate(FIELDS), sources)
        monkeypatch.undo()
        assert folder.is_dir()
        assert contents(folder) == before

    def test_never_replaces_another_folder(self, tmp_path: Path, sources: dict[str, Path]) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / "thesis.tex").write_text("x")
        with pytest.raises(BundleError, match="to be a bundle or not to exist"):
            create_bundle(home, BundleSpec.model_validate(FIELDS), sources)
        assert contents(home) == {"thesis.tex": b"x"}


class TestSeal:
    def test_new_digests_make_a_changed_bundle_open(self, folder: Path) -> None:
        before = Bundle.open(folder)
        (folder / "dense.onnx").write_bytes(b"retrained")
        with pytest.raises(BundleError, match="SHA-256"):
            Bundle.open(folder)
        after = seal_bundle(folder)
        assert after == Bundle.open(folder)
        assert after.digest != before.digest
        assert after.spec.dense.file.sha256 == sha256(b"retrained")
        assert after.spec.refiner == before.spec.refiner
        assert contents(folder).keys() == {BUNDLE_FILE, "dense.onnx", "refiner.safetensors"}

    def test_a_hand_written_bundle_may_come_without_digests(self, tmp_path: Path) -> None:
        fields = fields_with("dense.file", {"path": "dense.onnx"})
        folder = write_bundle(tmp_path / "hand", fields)
        with pytest.raises(BundleError, match=r"dense.onnx: .*sparserefine bundle seal"):
            Bundle.open(folder)
        assert seal_bundle(folder).spec == BundleSpec.model_validate(FIELDS)

    @pytest.mark.parametrize("name", ["refiner.safetensors", BUNDLE_FILE])
    def test_a_missing_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        before = contents(folder)
        with pytest.raises(BundleError, match=re.escape(name)):
            seal_bundle(folder)
        assert contents(folder) == before

    def test_a_mistake_is_not_sealed(self, tmp_path: Path) -> None:
        folder = write_bundle(tmp_path / "wrong", fields_with("colour", "red"))
        before = contents(folder)
        with pytest.raises(BundleError, match="colour: unknown field"):
            seal_bundle(folder)
        assert contents(folder) == before

    def test_sealed_follows_the_files(self, folder: Path, sources: dict[str, Path]) -> None:
        spec = Bundle.open(folder).spec
        again = sealed(spec, sources["dense.onnx"].parent)
        assert again.classes == spec.classes
        assert [file.sha256 for file in again.files()] == [
            sha256(path.read_bytes()) for path in sources.values()
        ]
