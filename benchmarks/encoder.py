"""Where the encoder's time goes beside the machine's own matrix rate: `python -m benchmarks.encoder`.

Writes `docs/results/encoder.md` and `.json`: FLOPs and time of every stage at batch 8 on one core and on two, beside
the rate of a 2048³ fp32 matrix product measured in the same minute, before and after each.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.header import header
from benchmarks.serve.workload import BUNDLE
from models.bundle.build import load_bundle
from models.types import ImageBatch

ROOT = Path(__file__).parents[1]
BATCH, SIDE, MATRIX = 8, 128, 2048


def main() -> None:
    """Measure with one thread and with two, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="measure here and print JSON")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    if options.threads:
        sys.stdout.write(json.dumps(profile(options.threads, options.rounds)))
        return
    found = []
    for threads in (1, 2):
        command = [sys.executable, "-m", "benchmarks.encoder", "--threads", str(threads)]
        command += ["--rounds", str(options.rounds)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    _write(options.out, found)


def profile(threads: int, rounds: int) -> dict[str, object]:
    """Best wall times of all stages; the best of many rounds is what a quiet machine would give."""
    torch.set_num_threads(threads)
    encoder = load_bundle(BUNDLE, device="cpu").encoder
    backbone, expert, head = encoder.extractor.backbone, encoder.extractor.expert, encoder._uhead
    pixels = (torch.rand((BATCH, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) * 2 - 1).to(
        memory_format=torch.channels_last
    )
    steps = torch.full((BATCH,), 50)
    whole = ImageBatch(pixels=pixels, timesteps=steps, captions=[None] * BATCH)
    alone = ImageBatch(pixels=pixels[:1], timesteps=steps[:1], captions=[None])
    half = load_bundle(BUNDLE, device="cpu", dtype="bf16").encoder
    left, right = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    with torch.inference_mode():
        states = encoder.extractor.conditioning(pixels, [None] * BATCH)
        latents = backbone.latents(pixels)
        taps = backbone.taps_of(latents, steps, states)
        maps = expert(pixels) if expert is not None else []
        stages: dict[str, Callable[[], object]] = {
            "VAE encoder": lambda: backbone.latents(pixels),
            "U-Net": lambda: backbone.taps_of(latents, steps, states),
            "expert": lambda: expert(pixels) if expert is not None else None,
            "U-head, pooled": lambda: head.pooled(taps, maps),
            "U-head, dense": lambda: head.dense(taps, maps),
        }
        passes: dict[str, Callable[[], object]] = {
            "all": lambda: encoder.encode_images(whole),
            "alone": lambda: encoder.encode_images(alone),
            "all in bf16": lambda: half.encode_images(whole),
            "alone in bf16": lambda: half.encode_images(alone),
        }
        calls = {**stages, "matrix": lambda: left @ right, **passes}
        seconds = dict.fromkeys(calls, float("inf"))
        # A recorded pass is rewritten after its first runs.
        for _ in range(3):
            passes["all"]()
            passes["all in bf16"]()
        for _ in range(rounds):
            for name, call in calls.items():
                begun_s = time.perf_counter()
                call()
                seconds[name] = min(seconds[name], time.perf_counter() - begun_s)
        flops = {name: _flops(call) for name, call in stages.items()}
    rate = 2 * MATRIX**3 / seconds["matrix"]
    total = sum(flops.values())
    return {
        "threads": threads,
        "matrix_gflops": rate / 1e9,
        "encoder_ms": seconds["all"] * 1e3,
        "alone_ms": seconds["alone"] * 1e3,
        "bf16_ms": seconds["all in bf16"] * 1e3,
        "bf16_alone_ms": seconds["alone in bf16"] * 1e3,
        "is_bf16_native": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "encoder_gflop": total / 1e9,
        "floor_ms": total / rate * 1e3,
        "of_matrix_rate": total / seconds["all"] / rate,
        "stages": [
            {
                "name": name,
                "ms": seconds[name] * 1e3,
                "gflop": flops[name] / 1e9,
                "share_of_time": seconds[name] / sum(seconds[stage] for stage in stages),
                "of_matrix_rate": flops[name] / seconds[name] / rate,
            }
            for name in stages
        ],
    }


def _flops(call: Callable[[], object]) -> int:
    # torch counts no convolution whose weights stay packed (docs/adr/0028).
    packed = {torch.ops.mkldnn._convolution_pointwise: _packed_flops}
    with FlopCounterMode(display=False, custom_mapping=packed) as counter:
        call()
    return int(counter.get_total_flops())


def _packed_flops(
    maps: Sequence[int], weights: Sequence[int], *_arguments: object, out_shape: Sequence[int], **_named: object
) -> int:
    return int(conv_flop_count(list(maps), list(weights), list(out_shape)))


def _write(folder: Path, found: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Encoder",
        "",
        f"{header('python -m benchmarks.encoder')} torch {torch.__version__}, weights/mini, fp32, "
        f"batch {BATCH}; best of all rounds; "
        f"the matrix rate is a {MATRIX}³ fp32 product in the same rounds. Bilinear resizing, norms and activations "
        "count as no FLOPs. The whole runs as it is served, as a recorded graph (ADR 22); the stages run one by one, "
        "unrecorded, so they add up to more.",
    ]
    for one in found:
        stages = one["stages"]
        assert isinstance(stages, list)
        lines += [
            "",
            f"## {one['threads']} thread{'s' if one['threads'] != 1 else ''}",
            "",
            f"{one['encoder_gflop']:.2f} GFLOP in {one['encoder_ms']:.1f} ms "
            f"({one['encoder_ms'] / BATCH:.1f} ms an image); matrix rate "  # type: ignore[operator]  # numbers
            f"{one['matrix_gflops']:.0f} GFLOP/s, so the floor is {one['floor_ms']:.1f} ms: "
            f"**{one['of_matrix_rate']:.0%} of the matrix rate**. One picture alone: {one['alone_ms']:.1f} ms.",
            "",
            f"In bf16 ({'' if one['is_bf16_native'] else 'no '}instructions for it): "
            f"{one['bf16_ms'] / BATCH:.1f} ms an image, {one['bf16_alone_ms']:.1f} alone.",  # type: ignore[operator]
            "",
            "| stage | ms | share of time | GFLOP | of the matrix rate |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {stage['name']} | {stage['ms']:.1f} | {stage['share_of_time']:.0%} | {stage['gflop']:.2f} | "
            f"{stage['of_matrix_rate']:.0%} |"
            for stage in stages
        ]
    (folder / "encoder.md").write_text("\n".join(lines) + "\n")
    (folder / "encoder.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
