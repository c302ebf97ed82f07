"""The composition root: everything the service consists of, built from the settings."""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from app.api.auth import ApiKey, ApiKeys, Scope, parse_keys, sha256_hex
from app.api.deps import Platform, Services, Stores, Tasks
from app.domain import MIB, BundleInfo, Encoder, Features, View
from app.engine.engine import SLOW_PASS_S, BatchingEngine
from app.engine.entries import CacheKey
from app.engine.executor import DeviceExecutor
from app.imaging.decoding import ImageCache, ImageDecoder
from app.imaging.processes import DecoderProcesses
from app.runtime.lru import ByteLru
from app.runtime.process import EXIT_FATAL, Deadline, Lifecycle
from app.runtime.telemetry import Telemetry, get_logger
from app.settings import Settings
from app.stores.blobs import IMAGE_FOLDER, Blobs
from app.stores.index.base import IndexOptions
from app.stores.index.follower import Indexes
from app.stores.index.snapshots import INDEX_FOLDER, IndexSnapshots
from app.stores.maintenance.reembed import Reembedding
from app.stores.maintenance.repair import Repairing
from app.stores.records.class_sets import ClassSets
from app.stores.records.episodes import Episodes
from app.stores.records.exports import Exports
from app.stores.records.galleries import Galleries
from app.stores.records.idempotency import IdempotencyKeys
from app.stores.records.items import Items
from app.stores.records.jobs import Jobs
from app.stores.sql.database import open_database
from app.stores.sql.metadata import session_secret
from app.stores.sql.probe import Probe
from app.tasks.features import ImageInputs, RequestEncoders
from app.tasks.fewshot import FewShot
from app.tasks.galleries import GalleryTask
from app.tasks.items import ItemTask
from app.tasks.reembed import Reembed
from app.tasks.retrieval import Retrieval
from app.tasks.segmentation import Segmentation, SegmentationHead
from app.tasks.workers import Workers
from models.types import LARGE_PARAMETERS

DEADLINE_S, DEADLINE_PASSES = 30.0, 6
"""The longest a request may take by default, and in passes of the slowest view where that is more."""
CACHE_BYTES, CACHED_FEATURES = 256 * MIB, 64
"""Memory of the feature cache by default, and how many of the largest features fit at least."""
MAX_GREETINGS = 64
"""Live connections that may be unauthenticated at once."""
WAITING_SHARE = 1 / 4
"""Share of the requests in flight that may wait for the write that `X-Min-Seq` names."""


def build_platform(settings: Settings) -> Platform:
    """The part of the service that exists before the bundle is loaded; starts nothing.

    Raises:
        ValueError: the API keys are malformed.
        OSError: the file of API keys cannot be read.
    """
    telemetry = Telemetry()
    cache = ImageCache(max_bytes=settings.picture_cache_bytes)
    telemetry.image_cache_bytes.set_function(lambda: cache.size_bytes)
    return Platform(
        lifecycle=Lifecycle(),
        telemetry=telemetry,
        limits=settings.limits,
        keys=ApiKeys(_read_keys(settings), settings.allowed_origins),
        images=ImageDecoder(
            limits=settings.limits,
            telemetry=telemetry,
            cache=cache,
            processes=DecoderProcesses(settings.decoders, limits=settings.limits),
            max_waiting=settings.max_decode_waiting,
        ),
        deadline=Deadline(settings.deadline_s or DEADLINE_S),
        live_slots=asyncio.Semaphore(settings.max_live_connections),
        # A semaphore binds to its loop at the first wait: creating it here is safe.
        live_greetings=asyncio.Semaphore(MAX_GREETINGS),
        wire=ThreadPoolExecutor(1, thread_name_prefix="wire"),
    )


def build_services(settings: Settings, platform: Platform) -> Services:
    """Load the bundle and open the stores; blocks for as long as that takes.

    Raises:
        models.errors.ModelError: the bundle is damaged.
        app.stores.sql.database.DataFolderLocked: another process serves the data folder.
        app.stores.sql.engines.UnusableDatabase: the database's URL is wrong, or no server answers there.
        app.errors.FingerprintMismatch: the data folder holds another bundle's vectors.
    """
    # Imported in the load's thread: torch and diffusers take seconds, and the port is open already.
    from models.bundle.build import load_bundle
    from models.bundle.files import find_bundle

    def on_stage(stage: str) -> None:
        platform.lifecycle.stage = stage
        get_logger().info("loading", stage=stage)

    folder = find_bundle(settings.bundle)
    loaded = load_bundle(
        folder, device=settings.device, dtype=settings.dtype, profile=settings.profile, on_stage=on_stage
    )
    on_stage("stores")
    return assemble_services(
        settings, platform, encoder=loaded.encoder, bundle=loaded.info, segmentation_head=loaded.segmentation_head
    )


def assemble_services(
    settings: Settings, platform: Platform, *, encoder: Encoder, bundle: BundleInfo, segmentation_head: SegmentationHead
) -> Services:
    """Engine, stores and tasks over a loaded encoder. Raises as `build_services`."""
    workers, threads = settings.workers_on(bundle.device, is_large=bundle.parameters > LARGE_PARAMETERS)
    device = DeviceExecutor(encoder, workers=workers, threads=threads)
    device.export_memory(platform.telemetry.device_memory)
    masks = bundle.tasks["segmentation"]
    platform.images.size_tiles(masks.tile_side, most=masks.max_tiles)
    sides = sorted({task.resolution for task in bundle.tasks.values()})
    cache = ByteLru[CacheKey, Features](
        CACHE_BYTES if settings.feature_cache_bytes is None else settings.feature_cache_bytes
    )
    engine = BatchingEngine(
        device,
        cache,
        platform.telemetry,
        max_batch=settings.max_batch_on(bundle.device),
        max_queue_cost=settings.max_queue_cost,
        view_pixels=sides[0] ** 2,
        stall_s=settings.stall_s,
        stop_timeout_s=settings.drain_timeout_s,
        # A fatal device error ends the process; the orchestrator starts another.
        on_fatal=lambda: platform.lifecycle.fail(EXIT_FATAL),
    )
    tasks = _open_tasks(
        settings, bundle=bundle, engine=engine, images=platform.images, segmentation_head=segmentation_head
    )
    with tasks.stores.database.write() as connection:
        platform.keys.sessions.secret = session_secret(connection)

    probe = None if settings.database_url is None else Probe(settings.database_url.get_secret_value())

    return Services(
        bundle=bundle,
        is_alive=engine.is_alive,
        is_current=lambda: tasks.stores.indexes.is_current,
        is_reachable=None if probe is None else probe.answers,
        tasks=tasks,
        on_start=(
            partial(_warm_up, engine, _warm_up_views(bundle), platform),
            partial(_fit_to_device, settings, platform, engine, cache, tasks),
            engine.start,
        ),
        # The engine first: requests that it still answers read and write the stores.
        on_stop=(engine.stop, partial(asyncio.to_thread, tasks.close)),
    )


def _read_keys(settings: Settings) -> list[ApiKey]:
    """All keys of the settings: from the environment, from the secret file, and the metrics token.

    Raises:
        ValueError: an entry is malformed.
        OSError: the file cannot be read.
    """
    keys: list[ApiKey] = []
    if settings.api_keys is not None:
        keys += parse_keys(settings.api_keys.get_secret_value())
    if settings.api_keys_file is not None:
        keys += parse_keys(settings.api_keys_file.read_text(encoding="utf-8"))
    if settings.metrics_token is not None:
        digest = sha256_hex(settings.metrics_token.get_secret_value())
        keys.append(ApiKey(name="metrics", sha256=digest, scopes=frozenset({Scope.METRICS})))
    return keys


def _open_tasks(
    settings: Settings,
    *,
    bundle: BundleInfo,
    engine: BatchingEngine,
    images: ImageDecoder,
    segmentation_head: SegmentationHead,
) -> Tasks:
    """The tasks over stores that are opened here; blocks, call it off the event loop. Raises as `build_services`."""
    limits, stores, workers = settings.limits, _open_stores(settings, bundle), Workers()
    database, galleries, items, indexes = stores.database, stores.galleries, stores.items, stores.indexes
    reembedding = Reembedding(database, fingerprint=bundle.fingerprint, dtype=settings.vector_dtype)
    layouts, inputs = {task: bundle.layout(task) for task in bundle.tasks}, ImageInputs(images, database, items)
    encoders = RequestEncoders(bundle=bundle, layouts=layouts, engine=engine, inputs=inputs)

    def close() -> None:
        workers.close()
        indexes.close()
        database.close()

    segmentation = Segmentation(
        encoders=encoders,
        head=segmentation_head,
        workers=workers,
        limits=limits,
        database=database,
        class_sets=stores.class_sets,
    )
    return Tasks(
        stores=stores,
        galleries=GalleryTask(
            database, galleries, indexes, max_waiting=math.ceil(settings.max_in_flight * WAITING_SHARE)
        ),
        items=ItemTask(
            encoders=encoders,
            decoder=images,
            database=database,
            galleries=galleries,
            items=items,
            exports=stores.exports,
            indexes=indexes,
        ),
        retrieval=Retrieval(encoders, database, galleries, indexes),
        segmentation=segmentation,
        fewshot=FewShot(encoders=encoders, database=database, episodes=stores.episodes, workers=workers, limits=limits),
        reembed=Reembed(
            encoders=encoders,
            segmentation=segmentation,
            database=database,
            blobs=stores.blobs,
            galleries=galleries,
            jobs=stores.jobs,
            limits=limits,
            reembedding=reembedding,
            repairing=Repairing(database, reembedding, fingerprint=bundle.fingerprint, dtype=settings.vector_dtype),
        ),
        idempotency=stores.idempotency_keys,
        close=close,
    )


def _open_stores(settings: Settings, bundle: BundleInfo) -> Stores:
    url, fingerprint, layout = settings.database_url, bundle.fingerprint, bundle.layout("retrieval")
    database = open_database(data_dir=settings.data_dir, url=None if url is None else url.get_secret_value())
    blobs = Blobs(settings.blob_url or str(settings.data_dir / IMAGE_FOLDER))
    indexes = Indexes(
        database,
        dimension=len(layout.weights),
        fingerprint=fingerprint,
        options=IndexOptions(
            kind=None if settings.index_kind == "auto" else settings.index_kind,
            flat_rows=settings.index_flat_rows,
            storage=settings.index_storage,
            query_weights=layout.query_weights,
        ),
        snapshots=IndexSnapshots(settings.data_dir / INDEX_FOLDER),
    )
    items = Items(database, blobs, indexes, fingerprint=fingerprint, dtype=settings.vector_dtype)
    stores = Stores(
        database=database,
        blobs=blobs,
        indexes=indexes,
        galleries=Galleries(database, blobs, indexes, fingerprint=fingerprint),
        items=items,
        exports=Exports(database, blobs, items, fingerprint=fingerprint),
        episodes=Episodes(database, blobs, fingerprint=fingerprint),
        class_sets=ClassSets(database, dimension=bundle.dimension, fingerprint=fingerprint),
        idempotency_keys=IdempotencyKeys(database, hold_s=_hold_s(settings.deadline_s or DEADLINE_S)),
        jobs=Jobs(database),
    )
    try:
        stores.galleries.load()
        stores.jobs.end_abandoned()
        # On SQLite this process is the only one, so that keys still held belong to a process that is gone.
        if not database.is_shared:
            stores.idempotency_keys.release_all()
        indexes.follow(settings.follow_interval_s if database.is_shared else None)
    except BaseException:
        indexes.close()
        database.close()
        raise
    return stores


async def _warm_up(engine: BatchingEngine, views: Sequence[View], platform: Platform) -> None:
    platform.lifecycle.stage = "warm-up"
    get_logger().info("loading", stage=platform.lifecycle.stage)
    await engine.warm_up(views)


async def _fit_to_device(
    settings: Settings, platform: Platform, engine: BatchingEngine, cache: ByteLru[CacheKey, Features], tasks: Tasks
) -> None:
    """Set what follows from the warm-up: deadline and tiles from the time of a pass, the cache from what it gives."""
    pass_s = engine.slowest_pass_s()
    if settings.feature_cache_bytes is None:
        cache.max_bytes = max(CACHE_BYTES, CACHED_FEATURES * engine.heaviest_bytes)
    if settings.deadline_s is None:
        platform.deadline.seconds = max(DEADLINE_S, DEADLINE_PASSES * pass_s)
        tasks.idempotency.hold_s = _hold_s(platform.deadline.seconds)
    if pass_s > SLOW_PASS_S:
        # All tiles and the whole image within half the deadline: others wait too.
        platform.images.limit_tiles(max(0, int(platform.deadline.seconds / (2 * engine.slowest_view_s())) - 1))
        get_logger().info("slow_device", pass_s=round(pass_s, 1), deadline_s=round(platform.deadline.seconds))


def _hold_s(deadline_s: float) -> float:
    """How long an idempotency key is held: beyond the deadline, or that of a live request would expire."""
    return 2 * deadline_s + 30


def _warm_up_views(bundle: BundleInfo) -> Sequence[View]:
    kinds = {(task.resolution, task.timestep, bundle.needs_dense(name)) for name, task in bundle.tasks.items()}
    return [
        View(
            pixels=np.zeros((side, side, 3), dtype=np.uint8),
            timestep=timestep,
            caption=None,
            key="warm-up",
            needs_dense=needs_dense,
        )
        for side, timestep, needs_dense in sorted(kinds)
    ]
