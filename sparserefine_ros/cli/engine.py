# SPDX-License-Identifier: Apache-2.0
"""`sparserefine engine`."""

from __future__ import annotations

import argparse
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from sparserefine_ros.cli.options import Commands, add_engine_options, engine_options, open_bundle

if TYPE_CHECKING:
    from sparserefine_ros.dense.engine_cache import EngineCache, EngineRecord

_SHOWN_DIGITS = 12


def add_engine(commands: Commands[argparse.ArgumentParser]) -> None:
    """Build and look after TensorRT engines."""
    parser = commands.add_parser("engine", help="build and look after TensorRT engines")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="build the engine of a bundle ahead of time")
    build.add_argument("bundle", help="bundle folder or shipped name")
    build.add_argument(
        "--backend", choices=("tensorrt", "tensorrt_rtx"), help="default: the one installed"
    )
    build.add_argument("--device", default="cuda", help="GPU to build for, where there is one")
    build.add_argument(
        "--compute-capability",
        metavar="X.Y",
        help="build for such GPUs instead, as 7.5 for Turing; tensorrt_rtx only",
    )
    add_engine_options(build)
    build.set_defaults(command=_build)
    shown = actions.add_parser("list", help="what is in the cache")
    inspect = actions.add_parser("inspect", help="verify an engine and show what it was built from")
    inspect.add_argument("key", help="first digits of its key")
    clean = actions.add_parser("clean", help="delete engines")
    which = clean.add_mutually_exclusive_group(required=True)
    which.add_argument("key", nargs="?", help="first digits of its key")
    which.add_argument("--stale", action="store_true", help="damaged or of other versions")
    which.add_argument("--all", action="store_true", help="every engine")
    for action, command in ((shown, _list), (inspect, _inspect), (clean, _clean)):
        action.add_argument("--engine-cache", type=Path, help="folder of built engines")
        action.set_defaults(command=command)


def _build(options: argparse.Namespace) -> None:
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from sparserefine_ros.dense.devices import find_gpu, on_gpu
    from sparserefine_ros.dense.engines import Engine, obtain_engine
    from sparserefine_ros.dense.options import Progress
    from sparserefine_ros.dense.tensorrt_library import build_target, load_library
    from sparserefine_ros.errors import BackendError

    bundle = open_bundle(options)
    library = load_library(options.backend or _installed_flavour())
    capability = _parse_capability(options.compute_capability)
    gpu = find_gpu(options.device)
    target = build_target(library, gpu, capability)
    started_s = time.perf_counter()
    style = "{l_bar}{bar}| {elapsed}"
    interrupted = threading.Event()
    with (
        logging_redirect_tqdm(),
        tqdm(total=100, bar_format=style, leave=False, disable=None) as bar,
        # This thread waits for Ctrl-C, which would get lost in the one that TensorRT calls back.
        ThreadPoolExecutor(1) as pool,
    ):

        def show(progress: Progress) -> None:
            if interrupted.is_set():
                raise BackendError("interrupted")
            bar.set_description(progress.doing, refresh=False)
            bar.update(100 * progress.share - bar.n)

        def obtain() -> Engine:
            with on_gpu(gpu):
                return obtain_engine(
                    bundle, library, options=engine_options(options), target=target, report=show
                )

        try:
            engine = pool.submit(obtain).result()
        except KeyboardInterrupt:
            interrupted.set()
            raise
    record = engine.cached.record
    took = f"{time.perf_counter() - started_s:.2f} s"
    done = f"built in {took}" if engine.built else f"taken from the cache in {took}"
    print(f"{bundle.name}: {done}, {record.size / 1e6:.1f} MB, key {record.key.digest}")


def _installed_flavour() -> str:
    from sparserefine_ros.dense.backends import TENSORRT_PACKAGES, installed_package
    from sparserefine_ros.errors import BackendError

    for flavour in TENSORRT_PACKAGES:
        if installed_package(flavour):
            return flavour
    raise BackendError(
        "expected TensorRT to build engines with, found none; run: pip install 'tensorrt>=10', or "
        "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs"
    )


def _parse_capability(text: str | None) -> tuple[int, int] | None:
    from sparserefine_ros.errors import ConfigurationError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    if not match:
        raise ConfigurationError(f"expected a compute capability such as 7.5, got {text!r}")
    return int(match[1]), int(match[2])


def _list(options: argparse.Namespace) -> None:
    cache = _cache(options)
    digests = cache.digests()
    if not digests:
        print(f"no engines in {cache.folder}")
        return
    rows: list[tuple[str, ...]] = [
        ("key", "bundle", "built by", "precision", "network input", "MB", "built", "state")
    ]
    rows += [_row(cache, digest) for digest in digests]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    print(f"{len(digests)} in {cache.folder}")


def _row(cache: EngineCache, digest: str) -> tuple[str, ...]:
    record, fault = _examine(cache, digest)
    size = f"{cache.size(digest) / 1e6:.1f}"
    if record is None:
        return (digest[:_SHOWN_DIGITS], "?", "?", "?", "?", size, "?", fault)
    key = record.key
    return (
        digest[:_SHOWN_DIGITS],
        record.bundle,
        f"{key.flavour} {key.version}",
        key.precision,
        _describe_shapes(key.shapes),
        size,
        record.built_utc[:16],
        fault or "good",
    )


def _describe_shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    texts = ["x".join(map(str, shape)) for shape in shapes]
    return texts[0] if len(texts) == 1 else f"{texts[0]} .. {texts[-1]}"


def _examine(cache: EngineCache, digest: str) -> tuple[EngineRecord | None, str]:
    """The record of an engine, and what is wrong with the engine; empty where nothing is."""
    from sparserefine_ros.dense.engine_cache import DamagedEngineError

    try:
        record = cache.read_record(digest)
    except DamagedEngineError as err:
        return None, f"damaged: {err}"
    try:
        cache.load(digest)
    except DamagedEngineError as err:
        return record, f"damaged: {err}"
    stale = _why_stale(record)
    return record, f"stale: {stale}" if stale else ""


def _why_stale(record: EngineRecord) -> str:
    """Why no start would ask for this engine again, by versions; empty where one might."""
    from sparserefine_ros.dense.engine_builder import BUILDER_VERSION
    from sparserefine_ros.dense.tensorrt_library import load_library
    from sparserefine_ros.errors import BackendError

    key = record.key
    if key.builder != BUILDER_VERSION:
        return f"written by builder {key.builder}, this one is {BUILDER_VERSION}"
    try:
        version = load_library(key.flavour).version
    except BackendError:
        return ""
    return "" if version == key.version else f"{key.flavour} is {version} now"


def _inspect(options: argparse.Namespace) -> int:
    from sparserefine_ros.dense.tensorrt_library import describe_validity, load_library
    from sparserefine_ros.errors import BackendError

    cache = _cache(options)
    digest = cache.resolve(options.key)
    record, fault = _examine(cache, digest)
    print(f"key: {digest}")
    if record is not None:
        for name, value in {
            **record.key.model_dump(),
            **record.model_dump(exclude={"key"}),
        }.items():
            print(f"{name}: {value}")
    if record is not None and not fault:
        try:
            library = load_library(record.key.flavour)
        except BackendError as err:
            print(f"runtime: not asked, {err}")
        else:
            fault = describe_validity(library, cache.load(digest).data)
    print(f"state: {fault or 'good: size and SHA-256 are those recorded'}")
    return 1 if fault else 0


def _clean(options: argparse.Namespace) -> None:
    cache = _cache(options)
    if options.key is not None:
        chosen = [cache.resolve(options.key)]
    else:
        chosen = [name for name in cache.digests() if options.all or _examine(cache, name)[1]]
    freed = sum(cache.size(digest) for digest in chosen)
    for digest in chosen:
        cache.remove(digest)
    print(f"{len(chosen)} engines deleted from {cache.folder}, {freed / 1e6:.1f} MB")


def _cache(options: argparse.Namespace) -> EngineCache:
    from sparserefine_ros.dense.engine_cache import EngineCache

    return EngineCache(options.engine_cache)
