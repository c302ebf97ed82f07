"""From a bundle folder and a data folder to running services; the slow part of the start."""

import asyncio
from collections.abc import Sequence

import numpy as np

from app.api.deps import Platform
from app.api.services import Services
from app.domain import BundleInfo, Encoder, View
from app.engine.engine import BatchingEngine
from app.engine.executor import DeviceExecutor
from app.runtime.lifecycle import EXIT_FATAL
from app.runtime.lru import ByteLru
from app.settings import Settings
from app.stores.index.base import IndexOptions
from app.tasks.assemble import StoreOptions, open_tasks
from app.tasks.fewshot import PrototypeHead
from app.tasks.segmentation.segmentation import SegmentationHead


def build_services(settings: Settings, platform: Platform) -> Services:
    """Load the bundle and open the stores; blocks for as long as that takes.

    Raises:
        models.errors.ModelError: the bundle is damaged.
        app.stores.sql.database.DataFolderLocked: another process serves the data folder.
        app.errors.FingerprintMismatch: the data folder holds another bundle's vectors.
    """
    # Imported here, in the load's thread: torch and diffusers take seconds, and the port is open already.
    from models.bundle.build import load_bundle
    from models.heads.fewshot import PrototypeHead as LoadedPrototypeHead

    loaded = load_bundle(settings.bundle, device=settings.device, dtype=settings.dtype, profile=settings.profile)
    return assemble_services(
        settings,
        platform,
        encoder=loaded.encoder,
        bundle=loaded.info,
        segmentation_head=loaded.segmentation_head,
        prototype_head=LoadedPrototypeHead(),
    )


def assemble_services(
    settings: Settings,
    platform: Platform,
    *,
    encoder: Encoder,
    bundle: BundleInfo,
    segmentation_head: SegmentationHead,
    prototype_head: PrototypeHead,
) -> Services:
    """Engine, stores and tasks over a loaded encoder. Raises as `build_services`."""
    device = DeviceExecutor(encoder, workers=settings.lanes_on(bundle.device), threads=settings.threads)
    device.export_memory(platform.telemetry.device_memory)
    engine = BatchingEngine(
        device,
        ByteLru(settings.feature_cache_bytes),
        platform.telemetry,
        max_batch=settings.max_batch_on(bundle.device),
        max_queue_cost=settings.max_queue_cost,
        stall_s=settings.stall_s,
        stop_timeout_s=settings.drain_timeout_s,
        on_fatal=lambda: platform.lifecycle.fail(EXIT_FATAL),
    )
    database_url = settings.database_url
    tasks = open_tasks(
        bundle=bundle,
        engine=engine,
        images=platform.images,
        limits=platform.limits,
        data_dir=settings.data_dir,
        segmentation_head=segmentation_head,
        prototype_head=prototype_head,
        store=StoreOptions(
            database_url=database_url.get_secret_value() if database_url is not None else None,
            blob_url=settings.blob_url,
            index=IndexOptions(
                kind=None if settings.index_kind == "auto" else settings.index_kind,
                flat_rows=settings.index_flat_rows,
                storage=settings.index_storage,
            ),
            vector_dtype=settings.vector_dtype,
            follow_interval_s=settings.follow_interval_s,
            hold_s=2 * settings.deadline_s + 30,
        ),
    )

    async def warm_up() -> None:
        await engine.warm_up(_warm_up_views(bundle))

    async def close_tasks() -> None:
        await asyncio.to_thread(tasks.close)

    return Services(
        bundle=bundle,
        engine=engine,
        is_alive=engine.is_alive,
        is_current=lambda: tasks.stores.indexes.is_current,
        tasks=tasks,
        on_start=(warm_up, engine.start),
        on_stop=(engine.stop, close_tasks),
    )


def _warm_up_views(bundle: BundleInfo) -> Sequence[View]:
    kinds = {(task.resolution, task.timestep) for task in bundle.tasks.values()}
    return [
        View(
            pixels=np.zeros((resolution, resolution, 3), dtype=np.uint8),
            timestep=timestep,
            caption=None,
            key="warm-up",
        )
        for resolution, timestep in sorted(kinds)
    ]
