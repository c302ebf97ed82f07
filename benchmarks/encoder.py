"""Measure the encoder, whole and by stage, beside the device's own matrix rate: `python -m benchmarks.encoder`.

Writes `docs/results/encoder.md` and `.json`. `python -m benchmarks.gpu` measures a GPU with the same functions.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.report import arguments, header, table, write
from benchmarks.workload import BUNDLE, random_batch
from models.bundle.build import load_bundle
from models.encoder import Encoder, TrainedNetwork, _fetched
from models.types import ImageBatch

MATRIX = 2048
Row = dict[str, Any]


class Precision(NamedTuple):
    """A dtype of the service; `has_tf32` lets convolutions, never matrix products, round float32 to TF32."""

    name: str
    dtype: str
    has_tf32: bool = True


FP32, FP16, BF16 = (Precision(name, name) for name in ("fp32", "fp16", "bf16"))
NO_TF32 = Precision("fp32, no TF32", "fp32", has_tf32=False)


@contextmanager
def encoder_of(precision: Precision, device: str, *, is_recorded: bool | None = None) -> Iterator[Encoder]:
    """Yield the bundle's encoder on a device, with recorded graphs or without; None leaves that to the encoder."""
    cudnn: Any = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, precision.has_tf32
    try:
        encoder = load_bundle(BUNDLE, device=device, dtype=precision.dtype).encoder
        if is_recorded is not None:
            encoder._is_recorded = is_recorded
        yield encoder
    finally:
        cudnn.allow_tf32 = before


def main() -> None:
    """Measure with one thread and with two, and write the report."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each precision and batch size")
    options = parser.parse_args()
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rows += [{"threads": threads, **row} for row in profile("cpu", (FP32, BF16), (8, 1), options.seconds)]
    lines = [
        "# Encoder",
        "",
        f"{header('python -m benchmarks.encoder')} torch {torch.__version__}, weights/mini. Times are the best of many "
        f"rounds; the matrix rate is that of a {MATRIX}³ fp32 product in the same rounds. Bilinear "
        "resizing, norms and activations count as no FLOPs. Served: as a recorded graph (ADR 22). Stages run one by "
        "one, unrecorded, so they add up to more.",
        "",
        *table(rows),
    ]
    write(options.out, "encoder", lines, rows)


def profile(device: str, precisions: Sequence[Precision], sizes: Sequence[int], seconds: float) -> list[Row]:
    """Return a row for each precision and batch size: the whole pass, then each stage; `seconds` is for each row."""
    rows = []
    for precision in precisions:
        with encoder_of(precision, device) as encoder, torch.inference_mode():
            for size in sizes:
                rows.append({"precision": precision.name, "batch": size, **_measured(encoder, device, size, seconds)})
    return rows


def _measured(encoder: Encoder, device: str, size: int, seconds: float) -> Row:
    is_cuda = device.startswith("cuda")
    batch = random_batch(size)
    # On a CPU without bf16 instructions a bf16 product takes a minute.
    left = torch.rand(MATRIX, MATRIX, device=device, dtype=encoder._dtype if is_cuda else torch.float32)

    def encode(is_recorded: bool) -> None:
        encoder._is_recorded = is_recorded
        encoder.encode_images(batch)

    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    stages: dict[str, Callable[[], object]] = {}
    passes = {"served": lambda: encode(True), "matrix": lambda: left @ left}
    if is_cuda or encoder._dtype == torch.float32:  # on a CPU only the recorded graph has packed bf16 weights
        stages = _stages(encoder, batch, device)
        passes["launched"] = lambda: encode(False)
    best_s = _best_s({**stages, **passes}, device, seconds)
    flops = {name: _flops(call) for name, call in stages.items()}
    flops = {"served": sum(flops.values()), **flops}
    rate = 2 * MATRIX**3 / best_s["matrix"]
    row: Row = {"images_per_s": size / best_s["served"], "matrix_gflops": rate / 1e9}
    if is_cuda:
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    if stages:
        row["launched_ms"] = best_s["launched"] * 1e3
    for name, count in flops.items():
        of_rate = {"gflop": count / 1e9, "of_matrix_rate": count / best_s[name] / rate} if count else {}
        row[name] = {"ms": best_s[name] * 1e3, **of_rate}
    return row


def _stages(encoder: Encoder, batch: ImageBatch, device: str) -> dict[str, Callable[[], object]]:
    """Map each stage to a call that runs it alone, outside the recorded graph."""
    if not isinstance(encoder.network, TrainedNetwork):
        return {}
    backbone, expert, head = encoder.extractor.backbone, encoder.extractor.expert, encoder.network.uhead

    def moved() -> torch.Tensor:
        return batch.pixels.to(device).to(dtype=encoder._dtype, memory_format=torch.channels_last)

    pixels, timesteps = moved(), batch.timesteps.to(device)
    states = encoder.extractor.conditioning(pixels, batch.captions)
    latents = backbone.latents(pixels)
    taps = backbone.taps_of(latents, timesteps, states)
    maps = expert(pixels) if expert is not None else []
    dense = head.dense(taps, maps)
    return {
        "to the device": moved,
        "VAE encoder": lambda: backbone.latents(pixels),
        "U-Net": lambda: backbone.taps_of(latents, timesteps, states),
        "expert": lambda: expert(pixels) if expert is not None else None,
        "U-head, pooled": lambda: head.pooled(taps, maps),
        "U-head, dense": lambda: head.dense(taps, maps),
        "dense to the host": lambda: _fetched(dense),
    }


def _best_s(calls: Mapping[str, Callable[[], object]], device: str, seconds: float) -> dict[str, float]:
    """Return the best wall time of each call; they take turns, five at least, so that all see the same machine."""
    best_s = dict.fromkeys(calls, float("inf"))
    started_s, turns = time.perf_counter(), -3  # a recorded graph is optimized after its first runs
    while turns < 5 or time.perf_counter() - started_s < seconds:
        for name, call in calls.items():
            begun_s = time.perf_counter()
            call()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turns >= 0:
                best_s[name] = min(best_s[name], time.perf_counter() - begun_s)
        turns += 1
    return best_s


def _flops(call: Callable[[], object]) -> int:
    def packed(maps: Sequence[int], weights: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
        return int(conv_flop_count(list(maps), list(weights), list(out_shape)))

    # torch does not count convolutions whose weights stay packed (docs/adr/0028).
    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._convolution_pointwise: packed}) as counter:
        call()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
