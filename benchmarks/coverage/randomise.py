"""Random parameters of which none is trivial, for networks without trained ones."""

from __future__ import annotations

import torch
from torch import nn

SEED = 0


def randomised(net: nn.Module) -> nn.Module:
    """Make every bias, scale and statistic of a network random, so that no share is trivially zero.

    What is initialised to zeros, or to one number all over, would hide a wrong rule: a bias of 0 has no share, a scale
    of 1 changes nothing. Weights drawn so small that a signal would die out in them are scaled up.

    Args:
        net: the network; changed in place.

    Returns:
        The network, in evaluation mode and float64.
    """
    generator = torch.Generator().manual_seed(SEED)

    def normal(tensor: torch.Tensor) -> None:
        tensor.normal_(std=0.1, generator=generator)

    def about_one(tensor: torch.Tensor) -> None:
        tensor.uniform_(0.5, 1.5, generator=generator)

    net = net.double().eval()
    with torch.no_grad():
        for module in net.modules():
            is_norm = "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(recurse=False):
                values = parameter.flatten()
                if name.endswith("bias"):
                    normal(parameter)
                elif is_norm and name.endswith("weight") and parameter.dim() == 1:
                    about_one(parameter)
                elif bool((values == values[:1]).all()):
                    constant = float(values[0])
                    # A layer scale of 1e-5 would hide the layer.
                    if abs(constant) < 0.1:
                        normal(parameter)
                    else:
                        about_one(parameter)
                        parameter.mul_(constant)
                elif parameter.dim() > 1:
                    deviation = float(parameter.std()) * parameter[0].numel() ** 0.5
                    parameter.div_(min(deviation, 1.0))
            for name, buffer in module.named_buffers(recurse=False):
                if name == "running_mean":
                    normal(buffer)
                elif name == "running_var":
                    about_one(buffer)
    return net
