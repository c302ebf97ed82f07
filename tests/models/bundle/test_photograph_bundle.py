"""A bundle with two views and class posteriors, through the code that serves; and older bundles, which have neither."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.files import fingerprint, read_manifest
from models.bundle.pack import MINI_DIMENSION, POSTERIORS, mini_uhead_shape, save_heads, save_posteriors, write_manifest
from models.encoder import TrainedNetwork
from models.errors import BundleError
from models.heads.posteriors import ClassPosteriors, PosteriorsConfig
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from models.types import ImageBatch

MINI = Path(__file__).parents[3] / "weights" / "mini"
# A manifest from before bundles had views of two sizes, and its fingerprint in fp32 as it was computed then.
OLDER = Path(__file__).with_name("mini-2026-11-23.json")
OLDER_FINGERPRINT = "fa64537b46f13cdc77c57f5044dababe330d62bff93b3565e7009c5643390761"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("photographs") / "bundle"
    shutil.copytree(MINI, bundle)
    torch.manual_seed(0)
    save_heads(UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION), bundle / "heads")
    posteriors = ClassPosteriors(PosteriorsConfig(), MINI_DIMENSION)
    posteriors.measure(torch.rand(64, 1280), torch.nn.functional.normalize(torch.randn(1000, MINI_DIMENSION), dim=1))
    torch.nn.init.constant_(posteriors.dense_weight, 0.5)
    torch.nn.init.normal_(posteriors.gate.weight, std=0.01)
    save_posteriors(posteriors, bundle / "heads")
    write_manifest(bundle, name="photographs", licence="", attribution="")
    return bundle


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedBundle:
    return load_bundle(folder, device="cpu")


def batch_of(pixels: torch.Tensor) -> ImageBatch:
    return ImageBatch(pixels=pixels, timesteps=torch.full((len(pixels),), 50), captions=[None] * len(pixels))


def pixels(count: int = 3) -> torch.Tensor:
    return torch.rand((count, 3, 224, 224), generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_heads_with_posteriors_have_a_larger_view_and_the_backbone_its_own(loaded: LoadedBundle) -> None:
    manifest = read_manifest(loaded.folder)
    assert {task.resolution for task in manifest.tasks.values()} == {224}
    assert manifest.components.vae.resolution == loaded.encoder.extractor.backbone.resolution == 128
    assert loaded.info.visual_dimension == PosteriorsConfig().visual


def test_a_recorded_pass_gives_three_features(loaded: LoadedBundle) -> None:
    found = loaded.encoder.encode_images(batch_of(pixels()))
    assert found.pooled.shape == (3, MINI_DIMENSION)
    assert found.visual.shape == (3, 256)
    assert found.dense.shape == (3, MINI_DIMENSION, 32, 32)
    assert torch.allclose(found.pooled.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(found.visual.norm(dim=1), torch.ones(3), atol=1e-5)
    assert all(isinstance(graph, torch.jit.ScriptModule) for graph in loaded.encoder._graphs.values())


def test_an_image_alone_has_the_features_it_has_in_a_batch(loaded: LoadedBundle) -> None:
    together = loaded.encoder.encode_images(batch_of(pixels()))
    for row in range(3):
        alone = loaded.encoder.encode_images(batch_of(pixels()[row : row + 1]))
        for name in ("pooled", "visual", "dense"):
            deviation = (getattr(alone, name)[0] - getattr(together, name)[row]).norm()
            assert deviation <= 1e-4 * getattr(together, name)[row].norm()


@torch.inference_mode()
def test_the_backbone_sees_the_smaller_view_and_the_expert_the_larger(loaded: LoadedBundle) -> None:
    network = loaded.encoder.network
    assert isinstance(network, TrainedNetwork)
    assert network.expert is not None
    small = torch.nn.functional.interpolate(pixels(), size=(128, 128), mode="bilinear", antialias=True)
    latents = network.backbone.latents(pixels())
    assert latents.shape[2:] == (16, 16)
    assert torch.equal(latents, network.backbone.latents(small))
    assert [level.shape[2] for level in network.expert(pixels())] == [56, 28, 14, 7]


def test_views_and_posteriors_are_part_of_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    def digest(change: dict[str, Any]) -> str:
        fields = json.loads((folder / "bundle.json").read_text())
        for name, settings in change.items():
            fields["components"][name] |= settings
        (tmp_path / "bundle.json").write_text(json.dumps(fields))
        return fingerprint(read_manifest(tmp_path), numerics="fp32")

    changes: list[dict[str, Any]] = [
        {},
        {"vae": {"resolution": 160}},
        {"posteriors": {"top_k": 5}},
        {"posteriors": {"temperature": 0.5}},
        {"posteriors": {"source": {"kind": "path", "path": "heads", "files": {POSTERIORS: "0" * 64}}}},
    ]
    assert len({digest(change) for change in changes}) == len(changes)


def test_an_older_manifest_is_the_same_model_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(OLDER, tmp_path / "bundle.json")
    monkeypatch.setattr("models.bundle.files.PREPROCESSING_VERSION", "3")  # of its time
    assert fingerprint(read_manifest(tmp_path), numerics="fp32") == OLDER_FINGERPRINT


def test_posteriors_without_an_expert_are_refused(folder: Path, tmp_path: Path) -> None:
    fields = json.loads((folder / "bundle.json").read_text())
    del fields["components"]["expert"]
    (tmp_path / "bundle.json").write_text(json.dumps(fields))
    with pytest.raises(BundleError, match="`posteriors` needs an `expert`"):
        read_manifest(tmp_path)
