"""Damage, misfits and fingerprints: one clear error naming file and tensor, before anything is served."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.files import fingerprint, read_manifest, sha256
from models.errors import BundleError, ChecksumError, TensorMismatchError

WEIGHTS = Path(__file__).parents[3] / "weights"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
UHEAD = "heads/uhead.safetensors"
SEGMENTATION = "heads/segmentation.safetensors"

Fields = dict[str, Any]


def _edit_manifest(bundle: Path, edit: Callable[[Fields], None]) -> None:
    fields = json.loads((bundle / "bundle.json").read_text())
    edit(fields)
    (bundle / "bundle.json").write_text(json.dumps(fields))


def _edit_tensors(bundle: Path, name: str, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes a weights file and seals it again, so that the checksum is right and the contents are not."""
    tensors = load_file(bundle / name)
    edit(tensors)
    save_file(tensors, bundle / name)
    folder, file = name.split("/")

    def seal(fields: Fields) -> None:
        for part in fields["components"].values():
            if part["source"].get("path") in (folder, f"./{folder}") and file in part["source"]["files"]:
                part["source"]["files"][file] = sha256(bundle / name)

    _edit_manifest(bundle, seal)


@pytest.mark.parametrize("name", [UNET, VAE, UHEAD, SEGMENTATION, "vae/config.json", "scheduler/scheduler_config.json"])
def test_one_flipped_bit_is_refused(tiny_copy: Path, name: str) -> None:
    content = bytearray((tiny_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tiny_copy / name).write_bytes(content)
    with pytest.raises(ChecksumError, match=Path(name).name):
        load_bundle(tiny_copy, device="cpu")


@pytest.mark.parametrize("name", [UNET, VAE, UHEAD, SEGMENTATION, "unet/config.json"])
def test_a_missing_file_is_named(tiny_copy: Path, name: str) -> None:
    (tiny_copy / name).unlink()
    with pytest.raises(BundleError, match=rf"{Path(name).name} is missing"):
        load_bundle(tiny_copy, device="cpu")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (UNET, "mid_block.resnets.0.conv1.weight"),
        (VAE, "encoder.conv_in.weight"),
        (UHEAD, "pool.query.weight"),
        (SEGMENTATION, "log_scale"),
    ],
)
def test_a_missing_tensor_is_named(tiny_copy: Path, name: str, tensor: str) -> None:
    _edit_tensors(tiny_copy, name, lambda tensors: tensors.__delitem__(tensor))
    with pytest.raises(TensorMismatchError, match=rf"{Path(name).name} lacks the tensor '{tensor}'"):
        load_bundle(tiny_copy, device="cpu")


@pytest.mark.parametrize("name", [UNET, VAE, UHEAD, SEGMENTATION])
def test_an_extra_tensor_is_named(tiny_copy: Path, name: str) -> None:
    _edit_tensors(tiny_copy, name, lambda tensors: tensors.update(stray=torch.zeros(2)))
    with pytest.raises(TensorMismatchError, match=rf"{Path(name).name} holds the unknown tensor 'stray'"):
        load_bundle(tiny_copy, device="cpu")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [(UNET, "conv_in.weight"), (VAE, "quant_conv.weight"), (UHEAD, "pool.out.bias"), (SEGMENTATION, "background.bias")],
)
def test_a_wrong_shape_is_named(tiny_copy: Path, name: str, tensor: str) -> None:
    _edit_tensors(tiny_copy, name, lambda tensors: tensors.update({tensor: torch.zeros(3, 2)}))
    with pytest.raises(TensorMismatchError, match=rf"'{tensor}' is \(3, 2\), not"):
        load_bundle(tiny_copy, device="cpu")


def test_a_file_that_is_no_safetensors_is_named(tiny_copy: Path) -> None:
    (tiny_copy / UHEAD).write_bytes(b"\x80\x04pickle")
    _edit_manifest(
        tiny_copy,
        lambda f: f["components"]["uhead"]["source"]["files"].update({"uhead.safetensors": sha256(tiny_copy / UHEAD)}),
    )
    with pytest.raises(BundleError, match=r"uhead\.safetensors is not a readable safetensors file"):
        load_bundle(tiny_copy, device="cpu")


def _without_checksums(fields: Fields) -> None:
    fields["components"]["unet"]["source"]["files"] = {}


def _outside(fields: Fields) -> None:
    fields["components"]["vae"]["source"]["files"]["../../secret"] = "0" * 64


def _absent_package(fields: Fields) -> None:
    fields["components"]["text"]["source"]["package"] = "no_such_package_here"


def _unlocked_hub(fields: Fields) -> None:
    source = {"kind": "hub", "repo": "someone/model", "revision": "main", "path": "vae", "wanted": ["config.json"]}
    fields["components"]["vae"]["source"] = source


def _unknown_tap(fields: Fields) -> None:
    fields["taps"].append("up_9")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(_without_checksums, "lists no files", id="no checksums"),
        pytest.param(_outside, "leaves its folder", id="a file outside"),
        pytest.param(_absent_package, "'no_such_package_here' is not installed", id="absent package"),
        pytest.param(_unlocked_hub, "vermouth bundle pull", id="hub source without a lock"),
        pytest.param(_unknown_tap, "no tap 'up_9'", id="unknown tap"),
        pytest.param(lambda f: f.update(schema_version=2), "schema_version", id="newer schema"),
        pytest.param(lambda f: f.update(typo=1), "typo", id="unknown field"),
        pytest.param(lambda f: f["tasks"].pop("fewshot"), "no task fewshot", id="task missing"),
        pytest.param(lambda f: f["tasks"]["fewshot"].update(features={"dense": 1}), "features", id="no such feature"),
        pytest.param(lambda f: f["tasks"]["fewshot"].update(features={"visual": 0}), "features", id="weight zero"),
        pytest.param(lambda f: f["tasks"]["fewshot"].update(features={}), "features", id="no feature"),
        pytest.param(
            lambda f: f["tasks"]["segmentation"].update(features={"visual": 1}),
            "takes no `features`",
            id="masks by visual",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tiny_copy: Path, edit: Callable[[Fields], None], message: str) -> None:
    _edit_manifest(tiny_copy, edit)
    with pytest.raises(BundleError, match=message):
        load_bundle(tiny_copy, device="cpu")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\x00"], ids=repr)
def test_a_manifest_that_is_no_json_object_is_refused(tiny_copy: Path, content: str) -> None:
    (tiny_copy / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_manifest(tiny_copy)


@pytest.mark.parametrize("content", ["{", "[]", '{"nothing": {}}'], ids=repr)
def test_a_damaged_lock_is_refused(tiny_copy: Path, content: str) -> None:
    (tiny_copy / "bundle.lock.json").write_text(content)
    with pytest.raises(BundleError, match=r"bundle\.lock\.json"):
        read_manifest(tiny_copy)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        load_bundle(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [("toaster", "auto", "toaster"), ("cpu", "int4", "int4")],
    ids=["unknown device", "unknown precision"],
)
def test_an_unknown_device_or_precision_is_refused(tiny_bundle: Path, device: str, dtype: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        load_bundle(tiny_bundle, device=device, dtype=dtype)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda f: f.update(noise_seed=1), id="noise"),
        pytest.param(lambda f: f["tasks"]["retrieval"].update(timestep=51), id="time step"),
        pytest.param(lambda f: f["tasks"]["retrieval"].update(resolution=136), id="resolution"),
        pytest.param(lambda f: f["components"]["text"].update(max_length=15), id="conditioning"),
        pytest.param(lambda f: f["tasks"]["retrieval"].update(features={"visual": 1}), id="what items hold"),
        pytest.param(lambda f: f["tasks"]["fewshot"].update(features={"visual": 1}), id="what examples hold"),
        pytest.param(lambda f: f["components"]["expert"].update(levels=[0, 1, 2, 3]), id="expert levels"),
        pytest.param(
            lambda f: f["components"]["unet"]["source"]["files"].update({"config.json": "0" * 64}), id="weights"
        ),
    ],
)
def test_whatever_shapes_a_feature_changes_the_fingerprint(tiny_copy: Path, edit: Callable[[Fields], None]) -> None:
    def digest() -> str:
        manifest = read_manifest(tiny_copy)
        return fingerprint(manifest, numerics="fp32")

    before = digest()
    _edit_manifest(tiny_copy, edit)
    assert digest() != before


def test_what_shapes_no_stored_feature_leaves_the_fingerprint_alone(tiny_copy: Path, tiny: LoadedBundle) -> None:
    _edit_manifest(tiny_copy, lambda f: f.update(name="other", licence="x", metrics={"map": 0.5}))
    _edit_manifest(tiny_copy, lambda f: f["tasks"]["segmentation"].update(tile=64))
    manifest = read_manifest(tiny_copy)
    assert fingerprint(manifest, numerics="fp32") == tiny.info.fingerprint
    assert fingerprint(manifest, numerics="bf16") != tiny.info.fingerprint
    assert (
        fingerprint(manifest.model_copy(update={"taps": manifest.taps[:2]}), numerics="fp32") != tiny.info.fingerprint
    )


def test_the_fingerprint_of_the_shipped_bundle_changes_with_preprocessing_alone() -> None:
    """Another one would refuse every store that was written with it."""
    stored = "bc4e779e25afd92774629dce4f3c4a0d26b6033fca30e2c50bc7fe6aec9d43f6"
    assert fingerprint(read_manifest(WEIGHTS / "mini"), numerics="fp32") == stored


@pytest.mark.parametrize("features", [{"visual": 1}, {"semantic": 9, "visual": 1}], ids=["visual", "both"])
def test_weights_of_features_leave_the_fingerprint_alone(tiny_copy: Path, features: dict[str, float]) -> None:
    def digest(wanted: dict[str, float]) -> str:
        _edit_manifest(tiny_copy, lambda f: f["tasks"]["retrieval"].update(features=wanted))
        return fingerprint(read_manifest(tiny_copy), numerics="fp32")

    assert digest(features) == digest({"semantic": 0.5, "visual": 0.5})


def test_the_preprocessing_version_is_in_the_fingerprint(
    tiny_bundle: Path, tiny: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.bundle.files.PREPROCESSING_VERSION", "other")
    manifest = read_manifest(tiny_bundle)
    assert fingerprint(manifest, numerics="fp32") != tiny.info.fingerprint


def test_shared_components_may_lie_in_a_sibling_folder(tiny_copy: Path, tiny: LoadedBundle) -> None:
    sibling = tiny_copy.parent / "sibling"
    (sibling / "heads").mkdir(parents=True)
    for name in (UHEAD, SEGMENTATION):
        (tiny_copy / name).rename(sibling / name)
    (tiny_copy / "bundle.json").rename(sibling / "bundle.json")

    def point_back(fields: Fields) -> None:
        for name in ("vae", "unet", "scheduler"):
            fields["components"][name]["source"]["path"] = f"../bundle/{name}"

    _edit_manifest(sibling, point_back)
    assert load_bundle(sibling, device="cpu").info.fingerprint == tiny.info.fingerprint
