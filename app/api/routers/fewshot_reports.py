"""Episodes and predictions in their wire format."""

from dataclasses import asdict

from app.api.schemas.fewshot import (
    EpisodeCreated,
    EpisodeEntry,
    EpisodeReport,
    LabelScore,
    LeaveOneOutReport,
    PredictionReport,
    SupportReport,
    WayCount,
    WayReport,
)
from app.stores.records.episodes import Episode
from app.tasks.fewshot import Created, Prediction, method_of
from models.heads.fewshot import LeaveOneOut


def episode_report(episode: Episode, left_out: LeaveOneOut | None = None) -> EpisodeReport:
    """A stored episode."""
    return EpisodeReport(
        id=episode.id,
        name=episode.name,
        version=episode.version,
        method=method_of(episode),
        fingerprint=episode.fingerprint,
        expires_at=episode.expires_at,
        ways=_ways(episode),
        leave_one_out=None if left_out is None else LeaveOneOutReport.model_validate(asdict(left_out)),
    )


def episode_entry(summary: Episode) -> EpisodeEntry:
    """A stored episode in a list."""
    return EpisodeEntry(
        id=summary.id,
        name=summary.name,
        version=summary.version,
        method=method_of(summary),
        fingerprint=summary.fingerprint,
        expires_at=summary.expires_at,
        ways=[WayCount(label=way.label, shots=way.shots) for way in summary.ways],
    )


def created_report(created: Created) -> EpisodeCreated:
    """A new episode; `predictions` is left unset where no queries came."""
    report = EpisodeCreated(
        **episode_report(created.episode, created.leave_one_out).model_dump(exclude={"ways"}),
        ways=_ways(created.episode),
        timings_ms=dict(created.timings_ms),
    )
    if created.predictions is None:
        return report
    return report.model_copy(update={"predictions": [prediction_report(one) for one in created.predictions]})


def prediction_report(prediction: Prediction) -> PredictionReport:
    """One query's answer."""
    return PredictionReport(
        label=prediction.label,
        probability=prediction.probability,
        abstained=prediction.abstained,
        scores=[LabelScore(label=score.label, probability=score.probability) for score in prediction.scores],
    )


def _ways(episode: Episode) -> list[WayReport]:
    return [
        WayReport(
            label=way.label,
            shots=len(way.support),
            support=[
                SupportReport(
                    id=support.id,
                    sha256=support.sha256,
                    image_url=f"/fewshot/episodes/{episode.id}/support/{support.id}/image",
                )
                for support in way.support
            ],
        )
        for way in episode.ways
    ]
