"""Exponential moving average of weights, the form in which they ship."""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Average of a module's parameters and buffers.

    The decay ramps up as (1 + step) / (10 + step), so that early averages are not held back by the initialisation.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the module's present weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = module.state_dict()
        floating = [name for name, tensor in now.items() if tensor.is_floating_point()]
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move([self.state[name] for name in floating], [now[name] for name in floating], torch.tensor(step))
        for name in now.keys() - set(floating):
            self.state[name].copy_(now[name])
