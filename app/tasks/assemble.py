"""Stores and tasks put together over one engine; what `build_services` calls."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.domain import BundleInfo, FeatureEngine
from app.images import ImageDecoder
from app.limits import Limits
from app.stores.blobs import Blobs
from app.stores.database import Database, open_database
from app.stores.galleries import Galleries
from app.stores.support_sets import SupportSets
from app.tasks.fewshot import FewShot, PrototypeHead
from app.tasks.ingest import Ingest
from app.tasks.pictures import Pictures
from app.tasks.retrieval import Retrieval
from app.tasks.segmentation import Segmentation, SegmentationHead
from app.tasks.thumbnails import Thumbnails
from app.tasks.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """What routers call; `close` ends the pools and lets go of the data folder."""

    database: Database
    galleries: Galleries
    support_sets: SupportSets
    retrieval: Retrieval
    ingest: Ingest
    segmentation: Segmentation
    fewshot: FewShot
    thumbnails: Thumbnails
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
    database_url: str | None = None,
    blob_url: str | None = None,
) -> Tasks:
    """Open the stores in `data_dir`, rebuild the indexes and wire the tasks; blocks, call it off the loop.

    Raises:
        DataFolderLocked: another process serves the folder.
        FingerprintMismatch: a gallery holds another bundle's vectors.
    """
    database = open_database(data_dir=data_dir, url=database_url)
    workers = Workers()

    def close() -> None:
        workers.close()
        database.close()

    try:
        blobs = Blobs(blob_url or str(data_dir / "blobs"))
        galleries = Galleries(database, blobs, dimension=bundle.dimension, fingerprint=bundle.fingerprint)
        galleries.load()
    except BaseException:
        close()
        raise
    support_sets = SupportSets(database, blobs)
    pictures = Pictures(images, database, galleries)
    return Tasks(
        database=database,
        galleries=galleries,
        support_sets=support_sets,
        retrieval=Retrieval(bundle=bundle, engine=engine, pictures=pictures, database=database, galleries=galleries),
        ingest=Ingest(bundle=bundle, engine=engine, pictures=pictures, database=database, galleries=galleries),
        segmentation=Segmentation(
            bundle=bundle,
            engine=engine,
            head=segmentation_head,
            pictures=pictures,
            workers=workers,
            limits=limits,
        ),
        fewshot=FewShot(
            bundle=bundle,
            engine=engine,
            head=prototype_head,
            pictures=pictures,
            database=database,
            support_sets=support_sets,
            workers=workers,
        ),
        thumbnails=Thumbnails(images, limits),
        close=close,
    )
