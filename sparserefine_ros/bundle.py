# SPDX-License-Identifier: Apache-2.0
"""The bundle: the one folder a user deploys.

`bundle.yaml` describes the classes, the dense model (ONNX), the selector, the optional refiner and
ensembler (safetensors), and holds the SHA-256 of each file. Everything that opens a model opens a
bundle. A bundle without a refiner is a plain dense segmenter.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparserefine_ros.bundle_spec import UNSEALED, BundleSpec, FileSpec
from sparserefine_ros.configuration import Record, read_yaml, write_yaml
from sparserefine_ros.errors import BundleError
from sparserefine_ros.files import expanded
from sparserefine_ros.resources import find_bundle

BUNDLE_FILE: Final = "bundle.yaml"


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle.

    Attributes:
        folder: where it lies.
        spec: content of `bundle.yaml`.
        digest: SHA-256 of `bundle.yaml`, hex; it covers the other files through their digests.
    """

    folder: Path
    spec: BundleSpec
    digest: str

    @classmethod
    def named(cls, name: str) -> Bundle:
        """Open a bundle by its folder, or by the name of one that ships with the package.

        Raises:
            ConfigurationError: no bundle of that name.
            BundleError: see `open`.
        """
        return cls.open(find_bundle(name))

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Open a bundle and verify every file.

        Raises:
            BundleError: no such bundle, unknown or wrong fields, a missing or changed file.
        """
        folder = expanded(folder)
        path = folder / BUNDLE_FILE
        if not path.is_file():
            raise BundleError(
                f"expected a bundle folder with {BUNDLE_FILE}, found none at {folder}; "
                "give the folder that `sparserefine train` or `sparserefine export` wrote"
            )
        spec = read_yaml(path, BundleSpec, BundleError)
        for file in spec.files():
            _verify(folder / file.path, file.sha256)
        return cls(folder, spec, sha256_of(path))

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return self.spec.name

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(entry.name for entry in self.spec.classes)

    @cached_property
    def palette(self) -> NDArray[np.uint8]:
        """uint8 [256, 3] RGB colour of each label; ids without a class are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.spec.classes)] = [entry.colour for entry in self.spec.classes]
        return palette

    def path(self, file: FileSpec) -> Path:
        """Where a file of the bundle lies."""
        return self.folder / file.path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise BundleError(f"expected the file {path} named in {BUNDLE_FILE}; restore it")
    found = sha256_of(path)
    if expected == UNSEALED:
        raise BundleError(
            f"{path}: {BUNDLE_FILE} holds no SHA-256 of it; "
            f"run: sparserefine bundle seal {path.parent}"
        )
    if found != expected:
        raise BundleError(
            f"{path}: expected SHA-256 {expected}, got {found}: the file changed or was not copied "
            "whole; copy it again, or run `sparserefine bundle seal` if you changed it on purpose"
        )


def create_bundle(folder: Path, spec: BundleSpec, sources: Mapping[str, Path]) -> Bundle:
    """Write a bundle folder whole or not at all, and open it.

    Args:
        folder: where the bundle shall lie; an existing bundle there is replaced, what else lies in
            its folder stays.
        spec: content of `bundle.yaml`; the digests are replaced by those of `sources`.
        sources: for each file name in `spec`, the file to copy.

    Raises:
        BundleError: a source is missing, `folder` holds something else than a bundle, or it cannot
            be written.
    """
    folder = folder.resolve()
    check_bundle_folder(folder)
    try:
        _create(folder, spec, sources)
    except OSError as err:
        raise BundleError(f"cannot write the bundle {folder}: {err}") from err
    return Bundle.open(folder)


def check_bundle_folder(folder: Path) -> None:
    """Check that a bundle may be written there, before the work that makes one.

    Raises:
        BundleError: it holds something else than a bundle.
    """
    if folder.exists() and not (folder / BUNDLE_FILE).is_file():
        raise BundleError(
            f"expected {folder} to be a bundle or not to exist; choose another folder"
        )


def _create(folder: Path, spec: BundleSpec, sources: Mapping[str, Path]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        for file in spec.files():
            source = sources.get(file.path)
            if source is None or not source.is_file():
                raise BundleError(
                    f"expected a file for {file.path!r}, got {source}; train or export it"
                )
            shutil.copyfile(source, new / file.path)
        write_yaml(new / BUNDLE_FILE, sealed(spec, new), heading=f"Model bundle {spec.name}")
        Bundle.open(new)
        _keep_others(folder, new)
        _replace(folder, new, Path(scratch) / "replaced")


def _keep_others(folder: Path, new: Path) -> None:
    """Copy what lies beside the files of an existing bundle, such as a licence or notes."""
    if not folder.exists():
        return
    own = {BUNDLE_FILE}
    with contextlib.suppress(BundleError):  # of a broken one all files are kept
        known = read_yaml(folder / BUNDLE_FILE, BundleSpec, BundleError).files()
        own |= {Path(file.path).parts[0] for file in known}
    for path in folder.iterdir():
        kept = new / path.name
        if path.name in own or kept.exists():
            continue
        if path.is_dir():
            shutil.copytree(path, kept, symlinks=True)
        else:
            shutil.copy2(path, kept, follow_symlinks=False)


def _replace(folder: Path, new: Path, replaced: Path) -> None:
    """Put `new` in the place of `folder`, which goes to `replaced`, or comes back on failure."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(replaced)
    try:
        new.rename(folder)
    except OSError:
        replaced.rename(folder)
        raise


def sealed(spec: BundleSpec, folder: Path) -> BundleSpec:
    """Return `spec` with the digests of the files as they lie in `folder`.

    Raises:
        BundleError: a file is missing.
    """
    updates: dict[str, Record] = {}
    for part in ("dense", "selector", "refiner"):
        section = getattr(spec, part)
        if section is None or not hasattr(section, "file"):
            continue
        path = folder / section.file.path
        if not path.is_file():
            raise BundleError(f"expected the file {path} named in {BUNDLE_FILE}; restore it")
        file = section.file.model_copy(update={"sha256": sha256_of(path)})
        updates[part] = section.model_copy(update={"file": file})
    return spec.model_copy(update=updates)


def seal_bundle(folder: Path) -> Bundle:
    """Write the digests of a hand-made or changed bundle's files into its `bundle.yaml`.

    Raises:
        BundleError: as `Bundle.open`, but for the digests.
    """
    path = folder / BUNDLE_FILE
    spec = sealed(read_yaml(path, BundleSpec, BundleError), folder)
    aside = path.with_suffix(".tmp")
    write_yaml(aside, spec, heading=f"Model bundle {spec.name}")
    aside.replace(path)
    return Bundle.open(folder)
