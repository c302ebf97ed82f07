"""The re-embedding task: everything is embedded by a new bundle beside the old one, compared, and switched at once."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.domain import BundleInfo, FeatureEngine, Limits
from app.errors import Conflict, ServiceError
from app.imaging.sources import EncodedImage, PixelBudget
from app.stores.blobs import Blobs
from app.stores.maintenance.reembed import LackingImage, Reembedding
from app.stores.records.galleries import Galleries
from app.stores.records.jobs import Job, Jobs
from app.stores.sql.database import Database
from app.tasks.features import admitted
from app.tasks.inputs import ImageInputs
from app.tasks.segmentation import Segmentation
from models.types import TaskProfile

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
        bundle: BundleInfo,
        engine: FeatureEngine,
        inputs: ImageInputs,
        segmentation: Segmentation,
        database: Database,
        blobs: Blobs,
        galleries: Galleries,
        jobs: Jobs,
        reembedding: Reembedding,
        limits: Limits,
    ) -> None:
        self._bundle = bundle
        self._engine = engine
        self._inputs = inputs
        self._segmentation = segmentation
        self._database = database
        self._blobs = blobs
        self._galleries = galleries
        self._jobs = jobs
        self._reembedding = reembedding
        self._limits = limits

    async def run(self, progress: Progress = lambda *_: None) -> Reembedded:
        """Embed everything that lacks a vector, then switch. The next run reuses the vectors of a stopped one.

        Args:
            progress: called with the numbers of done and of all entries.

        Raises:
            Conflict: the job was cancelled, or some entries cannot be embedded; nothing is switched then.
        """
        total = await self._database.run(self._reembedding.count)
        job = await self._database.run_write(self._jobs.begin, "reembed", total)
        try:
            done = await self._round(job.id, 0, total, progress)
            # Before the last round: it reads everything, and nothing may be written between a round and the switch.
            overlap = await asyncio.to_thread(self._overlap)
            while not await self._database.run_write(self._reembedding.switch):
                # A replica that still serves the old bundle has written something since.
                done = await self._round(job.id, done, total, progress)
        except BaseException as err:
            reason = err.detail if isinstance(err, ServiceError) else "The process ended."
            await self._database.run_write(self._jobs.finish, job.id, report={}, error=reason)
            raise
        report = {"embedded": done, "overlap_at_10": dict(overlap), "fingerprint": self._bundle.fingerprint}
        await self._database.run_write(self._jobs.finish, job.id, report=report)
        return Reembedded(job=job.id, embedded=done, overlap_at_10=overlap)

    async def job(self, job_id: str) -> Job:
        """The progress of one job. Raises NotFound."""
        return await self._database.run(self._jobs.get, job_id)

    async def delete_job(self, job_id: str) -> int:
        """Cancel a running job, or delete the record of an ended one.

        Returns:
            The last `seq` of the change log: jobs are not part of it.

        Raises:
            NotFound: there is no such job.
        """
        await self._database.run_write(self._jobs.delete, job_id)
        return await self._database.run(self._galleries.head_seq)

    async def _round(self, job_id: str, done: int, total: int, progress: Progress) -> int:
        """Embed everything that lacks a vector now; returns how many entries are done in all."""
        faults: list[str] = []
        last_item, last_support = 0, ""
        while part := await self._database.run(self._reembedding.items, IMAGES_AT_ONCE, last_item):
            last_item = int(part[-1].owner)  # an entry that cannot be embedded is passed, not tried again for ever
            faults += await self._embed(part, self._bundle.tasks["retrieval"])
            done = await self._advance(job_id, done + len(part), total, progress)
        while part := await self._database.run(self._reembedding.supports, IMAGES_AT_ONCE, last_support):
            last_support = str(part[-1].owner)
            faults += await self._embed(part, self._bundle.tasks["fewshot"])
            done = await self._advance(job_id, done + len(part), total, progress)
        for lacking in await self._database.run(self._reembedding.class_sets):
            vectors = await self._segmentation.embed_classes(lacking.classes)
            await self._database.run_write(self._reembedding.store_class_vectors, lacking, vectors)
            done = await self._advance(job_id, done + 1, total, progress)
        if faults:
            raise Conflict(f"{len(faults)} entries cannot be embedded: {'; '.join(faults[:MAX_FAULTS])}")
        return done

    async def _embed(self, part: Sequence[LackingImage], profile: TaskProfile) -> list[str]:
        """Embed stored images; returns a sentence for each that cannot be embedded."""
        budget = PixelBudget(max_pixels=self._limits.max_image_pixels * len(part), max_images=len(part))
        read: list[tuple[LackingImage, bytes]] = []
        faults: list[str] = []
        for one in part:
            try:
                read.append((one, await self._database.run(self._blobs.get, one.sha256)))
            except ServiceError as err:
                faults.append(f"{one.owner}: {err.detail}")
        prepared = await self._inputs.prepare([EncodedImage(data=data) for _, data in read], budget, profile)
        sound = [
            (one, ready) for (one, _), ready in zip(read, prepared, strict=True) if not isinstance(ready, ServiceError)
        ]
        faults += [
            f"{one.owner}: {ready.detail}"
            for (one, _), ready in zip(read, prepared, strict=True)
            if isinstance(ready, ServiceError)
        ]
        if sound:
            with admitted(self._engine, views=len(sound)) as encoder:
                captions = [one.caption for one, _ in sound]
                vectors = await encoder.pooled_images([ready for _, ready in sound], captions, profile)
            found = [(one, vector) for (one, _), vector in zip(sound, vectors, strict=True)]
            await self._database.run_write(self._reembedding.store_vectors, found)
        return faults

    async def _advance(self, job_id: str, done: int, total: int, progress: Progress) -> int:
        progress(done, max(total, done))
        if not await self._database.run_write(self._jobs.advance, job_id, done):
            raise Conflict("The job was cancelled; the old bundle is still the active one.")
        return done

    def _overlap(self) -> Mapping[str, float]:
        """overlap@10 between the two bundles' neighbours of sampled items, by gallery."""
        active = self._reembedding.active()
        if active is None or active == self._bundle.fingerprint:
            return {}
        found: dict[str, float] = {}
        for name in self._reembedding.galleries():
            # One gallery at a time: its vectors of both bundles are in memory.
            old, new = (self._reembedding.vectors(name, one) for one in (active, self._bundle.fingerprint))
            shared = np.intersect1d(old.ids, new.ids)
            if len(shared) > NEIGHBOURS:
                sampled = np.random.default_rng(1).choice(shared, min(SAMPLED, len(shared)), replace=False)
                shares = [len(old.near(i, NEIGHBOURS) & new.near(i, NEIGHBOURS)) for i in sampled]
                found[name] = float(np.mean(shares)) / NEIGHBOURS
        return found
