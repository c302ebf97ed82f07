"""Where training runs: the CPU in single precision, a GPU with its products in bfloat16."""

import torch

from models.errors import DataError

CPU = torch.device("cpu")


def device_named(name: str) -> torch.device:
    """The device of a name, such as `cpu` or `cuda`.

    Raises:
        DataError: torch knows none of that name, or the machine has no GPU.
    """
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise DataError(f"'{name}' is no device torch knows") from err
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"the device '{name}' was asked for and there is none")
    return device


def half_on_gpu(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 on a GPU; nothing on the CPU, where bfloat16 is slower."""
    # Without the cache of cast weights, which would outlive a CUDA graph.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


def batch_of(device: torch.device, *, cpu: int, gpu: int) -> int:
    """How many pictures a frozen network takes at once: few where they must stay in the cache, many on a GPU."""
    return gpu if device.type == "cuda" else cpu


def randn(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Normal noise: from the CPU's generator there; on a GPU from its own, which is seeded once."""
    if device.type == "cuda":
        return torch.randn(shape, device=device)
    return torch.randn(shape, generator=generator)


def to_input(pixels: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 3] uint8 RGB as [B, 3, H, W] float32 in [-1, 1], channels last, on the same device."""
    return (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def fast_products() -> None:
    """Lets a GPU round the operands of float32 products to TF32, and choose its convolutions by trying them."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
