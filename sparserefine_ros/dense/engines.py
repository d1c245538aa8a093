# SPDX-License-Identifier: Apache-2.0
"""The engine of a bundle: from the cache, or built and put there."""

from __future__ import annotations

import datetime
import hashlib
import logging
import time
from dataclasses import dataclass

from sparserefine_ros.bundle import Bundle
from sparserefine_ros.dense.backends import require_precision
from sparserefine_ros.dense.contract import Contract, network_shape
from sparserefine_ros.dense.engine_builder import BUILDER_VERSION, FLAGS, Shape, build_engine
from sparserefine_ros.dense.engine_cache import (
    CachedEngine,
    DamagedEngineError,
    EngineCache,
    EngineKey,
    EngineRecord,
)
from sparserefine_ros.dense.half import to_half
from sparserefine_ros.dense.onnx_file import dense_model_file
from sparserefine_ros.dense.options import EngineOptions, Report
from sparserefine_ros.dense.tensorrt_library import Library
from sparserefine_ros.errors import BackendError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """An engine at hand.

    Attributes:
        cached: the engine with its record.
        built: whether it was built now instead of taken from the cache.
    """

    cached: CachedEngine
    built: bool


def obtain_engine(
    bundle: Bundle,
    library: Library,
    *,
    options: EngineOptions,
    target: str,
    report: Report,
    refused: str = "",
) -> Engine:
    """Take the engine of a bundle from the cache, or build it and put it there.

    Args:
        bundle: verified bundle.
        library: the TensorRT flavour.
        options: precision, picture sizes, cache folder, and whether to build.
        target: what `build_target` returned.
        report: gets the progress of building and of waiting for another process.
        refused: why the engine in the cache is no good although it is whole; empty if it is.

    Raises:
        BackendError: it cannot be built, or must not be; the cache cannot be written.
        BundleError: the model contradicts the bundle.
    """
    require_precision(library.flavour, options.precision)
    key = engine_key(bundle, library, options=options, target=target)
    cache = EngineCache(options.cache)
    found, reason = (None, refused) if refused else _look(cache, key)
    if found:
        return Engine(found, built=False)
    if not options.build:
        raise BackendError(_not_built(bundle, cache, key, reason))
    with cache.lock(report):
        if not refused:
            found, reason = _look(cache, key)
            if found:  # by another process, meanwhile
                return Engine(found, built=False)
        _explain_build(cache, key, reason)
        return Engine(_build(bundle, library, cache, key, report), built=True)


def engine_key(
    bundle: Bundle, library: Library, *, options: EngineOptions, target: str
) -> EngineKey:
    """The key of a bundle's engine.

    Raises:
        BackendError: the sizes of the pictures are needed and not known.
    """
    return EngineKey(
        onnx_sha256=bundle.spec.dense.file.sha256,
        precision=options.precision,
        shapes=network_shapes(bundle, options),
        flavour=library.flavour,
        version=library.version,
        target=target,
        flags=FLAGS,
        builder=BUILDER_VERSION,
    )


def network_shapes(bundle: Bundle, options: EngineOptions) -> tuple[Shape, ...]:
    """Shapes of the network input: one, or the smallest, the usual and the largest.

    Where several pictures may come at once, the smallest is one of them, and the usual all.

    Raises:
        BackendError: the bundle leaves the size open and no picture sizes are given.
    """
    spec = bundle.spec.dense.input
    if not options.picture_sizes and spec.size is None:
        raise BackendError(
            f"expected the size of the camera's pictures for an engine of {bundle.name}, whose "
            f"input is the picture at scale {spec.scale}; give one such as 1920x1080, or the "
            "smallest, usual and largest such as 640x480,1920x1080,3840x2160 "
            "(node parameter picture_sizes, option --picture-sizes)"
        )
    sizes = [spec.size] if spec.size else [spec.low_res_size(s) for s in options.picture_sizes]
    batches = (1, options.max_batch, options.max_batch)
    sizes = sizes if len(sizes) == len(batches) else sizes * len(batches)
    shapes = tuple(network_shape(spec, *each) for each in zip(sizes, batches, strict=True))
    return shapes[:1] if len(set(shapes)) == 1 else shapes


def _look(cache: EngineCache, key: EngineKey) -> tuple[CachedEngine | None, str]:
    """The engine, or None and what is wrong with the one in its place."""
    try:
        return cache.find(key), ""
    except DamagedEngineError as err:
        return None, str(err)


def _explain_build(cache: EngineCache, key: EngineKey, damage: str) -> None:
    """Log why an engine is built although there may be one that looks like it."""
    if damage:
        logger.warning("building the engine again: %s", damage)
        return
    for digest in cache.digests():
        try:
            other = cache.read_record(digest).key
        except DamagedEngineError:
            continue
        differences = [
            f"{name} {getattr(other, name)} instead of {getattr(key, name)}"
            for name in ("flavour", "version", "target", "builder")
            if getattr(other, name) != getattr(key, name)
        ]
        same_work = ("onnx_sha256", "precision", "shapes")
        if differences and all(getattr(other, name) == getattr(key, name) for name in same_work):
            logger.info("the engine %s was built for %s", digest[:12], ", ".join(differences))


def _not_built(bundle: Bundle, cache: EngineCache, key: EngineKey, reason: str) -> str:
    what = f"the one there is damaged: {reason}" if reason else "there is none"
    return (
        f"expected a built engine of {bundle.name} for {key.flavour} {key.version}, {key.target}, "
        f"precision {key.precision}, in {cache.folder}, {what}; run `sparserefine engine build`, "
        "or let the node build it (build_engines)"
    )


def _build(
    bundle: Bundle, library: Library, cache: EngineCache, key: EngineKey, report: Report
) -> CachedEngine:
    started_s = time.perf_counter()
    logger.info(
        "building an engine of %s: %s %s, %s", bundle.name, key.flavour, key.version, key.target
    )
    path, max_batch = dense_model_file(bundle), key.shapes[-1][0]
    data = build_engine(
        library,
        to_half(path) if key.precision == "fp16" else path.read_bytes(),
        shapes=[(s[0], s[1], s[2], s[3]) for s in key.shapes],
        target=key.target,
        check=lambda inputs, outputs: Contract(bundle, inputs, outputs, max_batch).input.name,
        report=report,
    )
    record = EngineRecord(
        key=key,
        bundle=bundle.name,
        built_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        build_s=round(time.perf_counter() - started_s, 3),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    cache.store(record, data)
    logger.info("built in %.1f s, kept in %s", record.build_s, cache.folder)
    return CachedEngine(record, data)
