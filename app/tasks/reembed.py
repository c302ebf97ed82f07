"""The re-embedding task: everything is embedded by a new bundle beside the old one, compared, and switched at once."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.domain import Limits
from app.errors import Conflict, ServiceError
from app.imaging.decoding import PixelBudget
from app.imaging.raster import DecodedImage
from app.imaging.sources import EncodedImage
from app.stores.blobs import Blobs
from app.stores.maintenance.reembed import LackingImage, Reembedding
from app.stores.maintenance.repair import Repairing
from app.stores.records.galleries import Galleries
from app.stores.records.jobs import Jobs
from app.stores.sql.database import Database
from app.tasks.features import RequestEncoders
from app.tasks.segmentation import Segmentation

IMAGES_AT_ONCE = 32
SAMPLED = 100
NEIGHBOURS = 10
MAX_FAULTS = 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reembedded:
    """The result of a change of bundle.

    Attributes:
        job: its id.
        embedded: items, support images and class sets that have new vectors.
        overlap_at_10: by gallery of more than ten items: the mean share of a sampled item's ten nearest neighbours
            that stay the same with the new vectors.
    """

    job: str
    embedded: int
    overlap_at_10: Mapping[str, float]


class Reembed:
    """Embeds everything that is stored with this process's bundle, whichever bundle is active."""

    def __init__(
        self,
        *,
        encoders: RequestEncoders,
        segmentation: Segmentation,
        database: Database,
        blobs: Blobs,
        galleries: Galleries,
        jobs: Jobs,
        reembedding: Reembedding,
        repairing: Repairing,
        limits: Limits,
    ) -> None:
        self._encoders = encoders
        self._segmentation = segmentation
        self._database = database
        self._blobs = blobs
        self._galleries = galleries
        self._jobs = jobs
        self._reembedding = reembedding
        self._repairing = repairing
        self._limits = limits
        self.job = database.reads(jobs.get)

    async def run(self, progress: Progress = lambda *_: None) -> Reembedded:
        """Embed everything that lacks a vector, then switch. The next run reuses the vectors of a stopped one.

        Args:
            progress: called with the numbers of done and of all entries.

        Raises:
            Conflict: the job was cancelled, or some entries cannot be embedded; nothing is switched then.
        """
        total, done = await self._database.run(self._reembedding.count), 0
        job = await self._database.run_write(self._jobs.begin, "reembed", total)

        async def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, max(total, done))
            if not await self._database.run_write(self._jobs.advance, job.id, done):
                raise Conflict("The job was cancelled; the old bundle is still the active one.")

        try:
            await self._round(self._reembedding, advance)
            # Before the last round: it reads everything, and nothing may be written between a round and the switch.
            overlap = await asyncio.to_thread(self._overlap)
            while not await self._database.run_write(self._reembedding.switch):
                # A replica that still serves the old bundle has written something since.
                await self._round(self._reembedding, advance)
        except BaseException as err:
            reason = err.detail if isinstance(err, ServiceError) else "The process ended."
            await self._database.run_write(self._jobs.finish, job.id, report={}, error=reason)
            raise
        report = {"embedded": done, "overlap_at_10": dict(overlap), "fingerprint": self._encoders.bundle.fingerprint}
        await self._database.run_write(self._jobs.finish, job.id, report=report)
        return Reembedded(job=job.id, embedded=done, overlap_at_10=overlap)

    async def repair(self, progress: Progress = lambda *_: None) -> int:
        """Embed again, from the stored images, whatever has a damaged vector or none; returns how many.

        Raises:
            FingerprintMismatch: another bundle is active.
            Conflict: some entries cannot be embedded; all others were.
        """
        done = 0

        async def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, done)

        await self._database.run_write(self._repairing.begin)
        await self._round(self._repairing, advance)
        return done

    async def delete_job(self, job_id: str) -> int:
        """Cancel a running job, or delete the record of an ended one.

        Returns:
            The last `seq` of the change log: jobs are not part of it.

        Raises:
            NotFound: there is no such job.
        """
        await self._database.run_write(self._jobs.delete, job_id)
        return await self._database.run(self._galleries.head_seq)

    async def _round(self, store: Reembedding | Repairing, advance: Callable[[int], Awaitable[None]]) -> None:
        """Embed everything that lacks a vector now; `advance` is called with the number of entries of each part."""
        faults: list[str] = []
        last_item, last_support = 0, ""
        while part := await self._database.run(store.items, IMAGES_AT_ONCE, last_item):
            last_item = int(part[-1].owner)  # an entry that cannot be embedded is passed, not tried again for ever
            faults += await self._embed(store, part, "retrieval")
            await advance(len(part))
        while part := await self._database.run(store.supports, IMAGES_AT_ONCE, last_support):
            last_support = str(part[-1].owner)
            faults += await self._embed(store, part, "fewshot")
            await advance(len(part))
        for lacking in await self._database.run(store.class_sets):
            vectors = await self._segmentation.embed_classes(lacking.classes)
            await self._database.run_write(store.store_class_vectors, lacking, vectors)
            await advance(1)
        if faults:
            raise Conflict(f"{len(faults)} entries cannot be embedded: {'; '.join(faults[:MAX_FAULTS])}")

    async def _embed(self, store: Reembedding | Repairing, part: Sequence[LackingImage], task: str) -> list[str]:
        """Embed stored images; returns a sentence for each that cannot be embedded."""
        budget = PixelBudget(max_pixels=self._limits.max_image_pixels * len(part), max_images=len(part))
        read: list[tuple[LackingImage, bytes]] = []
        faults: list[str] = []
        for one in part:
            try:
                read.append((one, await self._database.run(self._blobs.get, one.sha256)))
            except ServiceError as err:
                faults.append(f"{one.owner}: {err.detail}")
        files, profile = [EncodedImage(data=data) for _, data in read], self._encoders.bundle.tasks[task]
        owners: list[LackingImage] = []
        images: list[DecodedImage] = []
        for (one, _), ready in zip(read, await self._encoders.inputs.prepare(files, budget, profile), strict=True):
            if isinstance(ready, ServiceError):
                faults.append(f"{one.owner}: {ready.detail}")
            else:
                owners.append(one)
                images.append(ready)
        if images:
            with self._encoders.admitted(task, views=len(images)) as encoder:
                vectors = await encoder.image_vectors(images, [one.caption for one in owners])
            found = list(zip(owners, vectors, strict=True))
            await self._database.run_write(store.store_vectors, found)
        return faults

    def _overlap(self) -> Mapping[str, float]:
        """overlap@10 between the two bundles' neighbours of sampled items, by gallery."""
        active = self._reembedding.active()
        own = self._encoders.bundle.fingerprint
        if active is None or active == own:
            return {}
        found: dict[str, float] = {}
        for name in self._reembedding.galleries():
            # One gallery at a time: its vectors of both bundles are in memory.
            old, new = (self._reembedding.vectors(name, one) for one in (active, own))
            shared = np.intersect1d(old.ids, new.ids)
            if len(shared) > NEIGHBOURS:
                sampled = np.random.default_rng(1).choice(shared, min(SAMPLED, len(shared)), replace=False)
                shares = [len(old.near(i, NEIGHBOURS) & new.near(i, NEIGHBOURS)) for i in sampled]
                found[name] = float(np.mean(shares)) / NEIGHBOURS
        return found
