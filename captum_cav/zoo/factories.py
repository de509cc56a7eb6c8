"""Networks of the user, made by a function that is found by its name."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import torchvision
from torch import nn

from captum_cav.errors import CAVTypeError
from captum_cav.zoo.names import find_factory
from captum_cav.zoo.networks import Network
from captum_cav.zoo.pictures import crop
from captum_cav.zoo.weights import fill, read_state


def network_of(model: nn.Module, name: str, classes: Sequence[str] = ()) -> Network:
    """A network with the usual preprocessing of ImageNet.

    The short side is resized to 256 pixels, and the centre of 224 x 224 pixels is cut out. The colours are normalized
    with the mean and the deviation of ImageNet.

    Args:
        model: maps pictures of shape (N, 3, 224, 224) to scores.
        name: the name of the network in messages and captions.
        classes: the names of the classes, in the order of the scores; empty if they are unknown.

    Returns:
        The network, in evaluation mode.

    Example::

        >>> network_of(nn.Flatten(), "mine")
        Network(name='mine', depths=())
    """
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    return Network(name, model, transform, functools.partial(crop, transform=transform), tuple(classes))


def load_factory(spec: str, weights: str | os.PathLike[str] | None = None) -> Network:
    """Load a network of your own, which a function of yours makes.

    The module is imported, and the function is looked up in the module. Nothing else of ``spec`` is evaluated.

    Args:
        spec: ``"package.module:factory"``. The factory is called without arguments. It returns a :class:`Network`, or a
            ``torch.nn.Module``. A module gets the usual preprocessing of ImageNet (short side to 256 pixels, centre of
            224 x 224 pixels, mean and deviation of ImageNet) and no class names.
        weights: a file with a state dict for that model, see :func:`load`.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: if ``spec`` is malformed, or if there is no such module or function, or if the function needs
            arguments.
        CAVTypeError: if the factory returns something else.
        ModelError: if the weights cannot be read, or do not fit the network.

    Example::

        >>> network = load_factory("torchvision.models:mobilenet_v3_small")
        >>> network.name, network.classes
        ('torchvision.models:mobilenet_v3_small', ())
    """
    made = find_factory(spec)()
    if isinstance(made, Network):
        network = made
    elif isinstance(made, nn.Module):
        network = network_of(made, spec)
    else:
        raise CAVTypeError(f"{spec} returned {type(made).__name__}: expected a Network or a torch.nn.Module")
    if weights is not None:
        fill(network.model, read_state(weights), network.name, os.fspath(weights))
    return network
