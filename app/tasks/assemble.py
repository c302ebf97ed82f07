"""Stores and tasks put together over one engine; what `build_services` calls."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.domain import BundleInfo, FeatureEngine, Limits
from app.imaging.decoding import ImageDecoder
from app.stores.blobs import Blobs
from app.stores.index.base import IndexOptions
from app.stores.index.follower import Indexes
from app.stores.index.snapshots import IndexSnapshots
from app.stores.maintenance.reembed import Reembedding
from app.stores.records.class_sets import ClassSets
from app.stores.records.episodes import Episodes
from app.stores.records.galleries import Galleries
from app.stores.records.idempotency import IdempotencyKeys
from app.stores.records.items import Items
from app.stores.records.jobs import Jobs
from app.stores.sql.database import Database, open_database
from app.stores.sql.tables import VectorDtype
from app.tasks.fewshot import FewShot, PrototypeHead
from app.tasks.galleries import GalleryTask
from app.tasks.idempotency import Idempotency
from app.tasks.inputs import ImageInputs
from app.tasks.items import ItemTask
from app.tasks.reembed import Reembed
from app.tasks.retrieval import Retrieval
from app.tasks.segmentation.segmentation import Segmentation, SegmentationHead
from app.tasks.workers import Workers

BLOBS = "blobs"
INDEXES = "indexes"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Where state lies and how it is kept.

    Attributes:
        database_url: a PostgreSQL URL; None for SQLite in the data folder.
        blob_url: an fsspec URL for pictures; None for the data folder. Replicas share it.
        follow_interval_s: how often a replica looks for others' writes.
        hold_s: how long a request may hold its `Idempotency-Key`; longer than the deadline.
    """

    database_url: str | None = None
    blob_url: str | None = None
    index: IndexOptions = field(default_factory=IndexOptions)
    vector_dtype: VectorDtype = "fp32"
    follow_interval_s: float = 0.1
    hold_s: float = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The database and everything that is stored in it."""

    database: Database
    indexes: Indexes
    galleries: Galleries
    items: Items
    episodes: Episodes
    class_sets: ClassSets
    idempotency_keys: IdempotencyKeys
    jobs: Jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """What routers call; `close` ends the pools and releases the data folder.

    Attributes:
        stores: what the tasks are built on, for tests and maintenance; routers never use it.
    """

    stores: Stores
    galleries: GalleryTask
    items: ItemTask
    retrieval: Retrieval
    segmentation: Segmentation
    fewshot: FewShot
    reembed: Reembed
    idempotency: Idempotency
    close: Callable[[], None]


def open_tasks(
    *,
    bundle: BundleInfo,
    engine: FeatureEngine,
    images: ImageDecoder,
    limits: Limits,
    data_dir: Path,
    segmentation_head: SegmentationHead,
    prototype_head: PrototypeHead,
    store: StoreOptions | None = None,
) -> Tasks:
    """Open the stores in `data_dir`, bring up the indexes and wire the tasks; blocks, call it off the loop.

    Raises:
        DataFolderLocked: another process serves the folder.
        UnusableDatabase: the database's URL is wrong, or nothing answers there.
    """
    store = store or StoreOptions()
    database = open_database(data_dir=data_dir, url=store.database_url)
    blobs = Blobs(store.blob_url or str(data_dir / BLOBS))
    indexes = Indexes(
        database,
        dimension=bundle.dimension,
        fingerprint=bundle.fingerprint,
        options=store.index,
        snapshots=IndexSnapshots(data_dir / INDEXES),
    )
    galleries = Galleries(database, blobs, indexes, fingerprint=bundle.fingerprint)
    items = Items(database, blobs, indexes, fingerprint=bundle.fingerprint, dtype=store.vector_dtype)
    idempotency = IdempotencyKeys(database, hold_s=store.hold_s)
    jobs = Jobs(database)
    workers = Workers()

    def close() -> None:
        workers.close()
        indexes.close()
        database.close()

    try:
        galleries.load()
        jobs.end_abandoned()
        if not database.is_shared:
            idempotency.release_all()
        indexes.follow(store.follow_interval_s if database.is_shared else None)
    except BaseException:
        close()
        raise
    episodes = Episodes(database, blobs, fingerprint=bundle.fingerprint)
    inputs = ImageInputs(images, database, items)
    class_sets = ClassSets(database, dimension=bundle.dimension, fingerprint=bundle.fingerprint)
    segmentation = Segmentation(
        bundle=bundle,
        engine=engine,
        head=segmentation_head,
        inputs=inputs,
        workers=workers,
        limits=limits,
        database=database,
        class_sets=class_sets,
    )
    return Tasks(
        stores=Stores(
            database=database,
            indexes=indexes,
            galleries=galleries,
            items=items,
            episodes=episodes,
            class_sets=class_sets,
            idempotency_keys=idempotency,
            jobs=jobs,
        ),
        galleries=GalleryTask(database=database, galleries=galleries, indexes=indexes),
        items=ItemTask(
            bundle=bundle,
            engine=engine,
            inputs=inputs,
            decoder=images,
            database=database,
            galleries=galleries,
            items=items,
            indexes=indexes,
        ),
        retrieval=Retrieval(
            bundle=bundle, engine=engine, inputs=inputs, database=database, galleries=galleries, indexes=indexes
        ),
        segmentation=segmentation,
        fewshot=FewShot(
            bundle=bundle,
            engine=engine,
            head=prototype_head,
            inputs=inputs,
            database=database,
            episodes=episodes,
            workers=workers,
            limits=limits,
        ),
        reembed=Reembed(
            bundle=bundle,
            engine=engine,
            inputs=inputs,
            segmentation=segmentation,
            database=database,
            blobs=blobs,
            galleries=galleries,
            jobs=jobs,
            reembedding=Reembedding(database, fingerprint=bundle.fingerprint, dtype=store.vector_dtype),
            limits=limits,
        ),
        idempotency=Idempotency(database=database, keys=idempotency),
        close=close,
    )
