"""The real server process over a fake device: `python -m tests.app.server_process MODE`.

Modes: `held` (the load waits for a line on stdin), `bad-load`, `bad-warm-up`, `fatal` (the device dies on the
first request after the warm-up).
"""

import sys

from app.api.deps import Platform, Services
from app.composition import assemble_services
from app.domain import BundleInfo
from app.server import serve
from app.settings import Settings
from models.types import ImageBatch, TaskProfile
from tests.app.api.conftest import FakeSegmentationHead
from tests.app.fakes import DIMENSION, FakeEncoder


def build_services(settings: Settings, platform: Platform) -> Services:
    mode = sys.argv[1]
    if mode == "bad-load":
        raise ValueError("weights/mini/unet: a damaged file")
    if mode == "held" and not sys.stdin.readline():
        raise ValueError("the test went away")
    encoder = FakeEncoder()

    def fail(_: ImageBatch) -> None:
        is_warm = len(encoder.text_batches) > 0
        if mode == "bad-warm-up" or (mode == "fatal" and is_warm):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    encoder.fail = fail
    profile = TaskProfile(resolution=128, timestep=1, templates=("{}",))
    bundle = BundleInfo(
        name="fake",
        fingerprint="fake",
        dimension=DIMENSION,
        device="cpu",
        dtype="fp32",
        captioner="none",
        tasks={"retrieval": profile, "segmentation": profile, "fewshot": profile},
        manifest={},
    )
    return assemble_services(
        settings, platform, encoder=encoder, bundle=bundle, segmentation_head=FakeSegmentationHead()
    )


if __name__ == "__main__":
    sys.exit(serve(Settings(), build_services))
