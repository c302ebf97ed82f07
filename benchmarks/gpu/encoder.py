"""How fast the encoder is by dtype and batch: with its copies and without, as launched and as one graph."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.gpu.precision import PRECISIONS, SIDE, Precision, batch_of, encoder_of, synchronise
from models.acceleration import cuda_graphs
from models.acceleration.cuda_graphs import GraphedPass
from models.encoder import Encoder, _fetched

Row = dict[str, object]


def speed(device: str, sizes: Sequence[int], seconds: float, note: Callable[[str], None]) -> dict[str, list[Row]]:
    """A row a dtype and batch size, and the stages of three batch sizes; `seconds` for all."""
    is_cuda = device.startswith("cuda")
    chosen = PRECISIONS if is_cuda else PRECISIONS[:1]
    each_s = seconds / len(chosen) / len(sizes) / 5
    rows: list[Row] = []
    stages: list[Row] = []
    for precision in chosen:
        with encoder_of(precision, device) as encoder, torch.inference_mode():
            for size in sizes:
                rows.append(_row(encoder, precision, device, size, each_s))
                note(str(rows[-1]))
            if precision.name in ("fp16", "fp32"):
                for size in [size for size in (1, 8, 64) if size in sizes]:
                    stages.append(_stages(encoder, precision, device, size, each_s / 2))
    return {"rows": rows, "stages": stages}


def _row(encoder: Encoder, precision: Precision, device: str, size: int, each_s: float) -> Row:
    is_cuda = device.startswith("cuda")
    pixels = torch.rand((size, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(size)) * 2 - 1
    whole = batch_of(pixels)
    row: Row = {"precision": precision.name, "batch": size}
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    encoder._is_recorded = False
    row["launched_ms"] = median_ms(lambda: encoder.encode_images(whole), device, each_s)
    inputs = _inputs(encoder, whole.pixels, device)
    row["launched_pass_ms"] = median_ms(lambda: encoder._network(*inputs), device, each_s)
    if is_cuda:
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        row |= _graphed(encoder, inputs, device, each_s)
    encoder._is_recorded = True
    row["served_ms"] = median_ms(lambda: encoder.encode_images(whole), device, each_s)
    row["per_s"] = size / min(float(str(row["served_ms"])), float(str(row["launched_ms"]))) * 1e3
    return row


def _graphed(
    encoder: Encoder, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], device: str, each_s: float
) -> Row:
    """A graph of this very size, also where the service would not use one."""
    largest, cuda_graphs.LARGEST = cuda_graphs.LARGEST, 256
    before = torch.cuda.memory_reserved()
    try:
        graphed = GraphedPass(encoder._network)
        wanted, found = encoder._network(*inputs)[1], graphed(*inputs)[1]
        if not graphed.sizes:
            return {"graph_pass_ms": None}
        return {
            "graph_off": float((wanted - found).abs().max() / wanted.abs().max()),
            "graph_pass_ms": median_ms(lambda: graphed(*inputs), device, each_s),
            "graph_mib": (torch.cuda.memory_reserved() - before) / 2**20,
        }
    except RuntimeError as err:
        return {"graph_error": str(err)[:200]}
    finally:
        cuda_graphs.LARGEST = largest


def _inputs(encoder: Encoder, pixels: torch.Tensor, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    placed = pixels.to(device).to(dtype=encoder._dtype, memory_format=torch.channels_last)
    whole = batch_of(pixels)
    return placed, whole.timesteps.to(device), encoder.extractor.conditioning(placed, whole.captions)


def _stages(encoder: Encoder, precision: Precision, device: str, size: int, each_s: float) -> Row:
    backbone, expert, head = encoder.extractor.backbone, encoder.extractor.expert, encoder._uhead
    pixels, steps, states = _inputs(encoder, torch.rand((size, 3, SIDE, SIDE)) * 2 - 1, device)
    latents = backbone.latents(pixels)
    taps = backbone.taps_of(latents, steps, states)
    maps = expert(pixels) if expert is not None else []
    dense = head.dense(taps, maps)
    calls: dict[str, Callable[[], object]] = {
        "pixels there": lambda: _inputs(encoder, torch.zeros(size, 3, SIDE, SIDE), device),
        "VAE encoder": lambda: backbone.latents(pixels),
        "U-Net": lambda: backbone.taps_of(latents, steps, states),
        "expert": lambda: expert(pixels) if expert is not None else None,
        "U-head, pooled": lambda: head.pooled(taps, maps),
        "U-head, dense": lambda: head.dense(taps, maps),
        "dense back, as it was": lambda: dense.float().cpu(),
        "dense back": lambda: _fetched(dense),
    }
    found: Row = {"precision": precision.name, "batch": size}
    return found | {name: median_ms(call, device, each_s) for name, call in calls.items()}


def median_ms(call: Callable[[], object], device: str, seconds: float) -> float:
    """Median wall time of a call and all it started, five times at least; two before do not count."""
    for _ in range(2):
        call()
    synchronise(device)
    found: list[float] = []
    begun_s = time.perf_counter()
    while len(found) < 5 or time.perf_counter() - begun_s < seconds:
        started_s = time.perf_counter()
        call()
        synchronise(device)
        found.append(time.perf_counter() - started_s)
        if time.perf_counter() - begun_s > 4 * seconds + 1:
            break
    return float(np.median(found)) * 1e3
