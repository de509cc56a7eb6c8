"""What the model notes on its modules in a forward pass, such as a cached weight or its last activations.

After a pass the modules are as after an ordinary forward pass, but for two cases:

- A tensor with a graph of the user's comes back, because the user may still need the graph: a pruned weight, an
  auxiliary loss.
- A tensor that carries contributions stays as a value, because contributions are no gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from captum_cav.propagation.marks import get_mark
from captum_cav.torch_internals import base_of, may_note, noting_places


@contextmanager
def noted_tensors(modules: Iterable[torch.nn.Module], run: object) -> Iterator[None]:
    """A context of one pass. After it, no tensor on a module of the model has a graph that carries contributions.

    Args:
        modules: the modules of the model, as :func:`captum_cav.torch_internals.modules_of` gives them.
        run: the identity of the pass.
    """
    modules = list(filter(may_note, modules))
    before = {id(place): dict(place) for place in noting_places(modules)}
    try:
        yield
    finally:
        for place in noting_places(modules):
            old = before.get(id(place), {})
            for key, noted in list(place.items()):
                if isinstance(noted, torch.Tensor) and (noted.requires_grad or noted is not old.get(key)):
                    place[key] = _settled(noted, old.get(key), run)


def _settled(noted: torch.Tensor, old: Any, run: object) -> torch.Tensor:
    """The tensor that a module keeps after a pass.

    Args:
        noted: the tensor that the module has at the end of the pass.
        old: what was in its place before the pass.
        run: the identity of the pass.
    """
    carries = noted.requires_grad and get_mark(noted, run) is not None
    was_written_into = noted is old
    if was_written_into and carries and base_of(noted) is None:
        return noted.detach_()
    has_users_graph = isinstance(old, torch.Tensor) and old.grad_fn is not None and old.shape == noted.shape
    # Another value of a constant stays: the model may have noted elsewhere which value is there.
    if has_users_graph and (carries or (not noted.is_meta and torch.equal(old, noted))):
        return cast(torch.Tensor, old)
    return noted.detach() if carries else noted
