"""Heads that see less: the same head, the same data and the same steps, with some frozen maps blank."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from models.errors import DataError
from training.heads.frozen import HeadData

Features = Literal["fused", "expert", "diffusion"]
FEATURES: tuple[Features, ...] = ("fused", "expert", "diffusion")
_BLANK: Mapping[Features, str | None] = {"fused": None, "expert": "sd.", "diffusion": "expert."}
_RECORD = "training.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRecord:
    """How a folder's heads were trained; kept beside them.

    Attributes:
        features: which frozen maps they saw; others were zero.
        release: trained on unseen classes and words too.
        seed: of training.
        steps: planned; the curve tells how many were taken.
        adapted: whether the expert learnt with them.
    """

    features: Features
    release: bool
    seed: int
    steps: int
    adapted: bool = False


def only(data: HeadData, features: Features) -> HeadData:
    """Training data whose other maps read as zeros."""
    prefix = _BLANK[features]
    if prefix is None:
        return data
    return dataclasses.replace(data, store=data.store.blank(prefix), scene_store=data.scene_store.blank(prefix))


def visible(
    taps: Mapping[str, torch.Tensor], expert: list[torch.Tensor], features: Features
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Frozen maps as heads trained on `features` take them: the others zero."""
    if features == "expert":
        return {name: torch.zeros_like(tap) for name, tap in taps.items()}, expert
    if features == "diffusion":
        return dict(taps), [torch.zeros_like(level) for level in expert]
    return dict(taps), expert


def write_record(heads: Path, record: HeadRecord) -> None:
    """Writes `training.json` into a folder of heads."""
    (heads / _RECORD).write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n")


def read_record(heads: Path) -> HeadRecord:
    """What `write_record` wrote.

    Raises:
        DataError: no record, or one of unknown features.
    """
    file = heads / _RECORD
    if not file.is_file():
        raise DataError(f"no {file}: run `vermouth train heads`")
    facts = json.loads(file.read_text())
    if facts["features"] not in FEATURES:
        raise DataError(f"{file} tells of unknown features '{facts['features']}'")
    return HeadRecord(
        features=cast(Features, facts["features"]),
        release=bool(facts["release"]),
        seed=int(facts["seed"]),
        steps=int(facts["steps"]),
        adapted=bool(facts.get("adapted", False)),
    )
