"""Names of networks, of factories and of classes. This module loads neither torch nor torchvision.

So the command line can refuse a wrong name at once, before torch loads.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import operator
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from captum_cav.errors import InputError

#: The network that is no model of torchvision.
EFFICIENTNET_LITE0 = "efficientnet_lite0"
# A function of torchvision that makes a model: its name follows this decorator, maybe after other decorators.
_REGISTERED = re.compile(r"^@register_model\((?:name=[\"'](\w+)[\"'])?\)\n(?:.*\n)*?def (\w+)\(", re.MULTILINE)
_CLASSES = "_IMAGENET_CATEGORIES"
#: What the networks of torchvision do that are no classifiers, and what of their output can be explained.
TASKS = {"segmentation": "region:CLASS", "detection": "box:NUMBER"}


def check_network(name: Any, known: Collection[str]) -> None:
    """Refuse an unknown name of a network.

    Args:
        name: what was given.
        known: the names that exist.

    Raises:
        InputError: suggests similar names.
    """
    if name not in known:
        near = difflib.get_close_matches(str(name), known)
        hint = f"near matches: {', '.join(near)}" if near else "no name comes near"
        raise InputError(
            f"no network is named {name!r}; {hint}. Known are squeezenet1_1, efficientnet_lite0 and torchvision's "
            'networks that classify, segment or detect; a network of your own is loaded as "package.module:factory"'
        )


def find_factory(spec: str) -> Any:
    """Find a function of the user that makes a network.

    The module is imported, and the function is looked up in the module. Nothing else of ``spec`` is evaluated.

    Args:
        spec: ``"package.module:factory"``.

    Returns:
        The function.

    Raises:
        InputError: if ``spec`` is malformed, or if there is no such module or function, or if the function needs
            arguments.
    """
    module_name, _, attribute = spec.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f'{spec!r} does not name a factory: expected "package.module:factory"')
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import {module_name} of {spec!r}: {error}. Is it installed, or its folder on PYTHONPATH?"
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module))
        hint = f"; near matches: {', '.join(near)}" if near else ""
        raise InputError(f"{module_name} has no {attribute!r}{hint}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise InputError(f"{spec} is no function: it is {type(factory).__name__}")
    try:
        signature = inspect.signature(factory)
    except ValueError:
        # Some functions written in C do not tell their arguments. The call will show whether they need any.
        return factory
    try:
        signature.bind()
    except TypeError as error:
        raise InputError(f"{spec} must be callable without arguments: {error}") from error
    return factory


def find_class(name_or_index: str | int, classes: Sequence[str], network: str) -> int:
    """Find the index of a class.

    Args:
        name_or_index: an index, the digits of an index, a class name in upper or lower case, or a part of a name that
            occurs in no other name.
        classes: the names of the classes, in the order of the scores; empty if they are unknown.
        network: the name of the network, for messages.

    Returns:
        The position of the class in ``classes``. If the class names are unknown, every index from 0 on is accepted.

    Raises:
        InputError: if the index is out of range, or if the name fits no class or several classes.
    """
    if isinstance(name_or_index, str):
        wanted = name_or_index.strip()
        if re.fullmatch(r"[+-]?[0-9]+", wanted):
            return _check_index(int(wanted), classes, network)
        return _find_class_name(wanted, classes, network)
    # In Python a bool is an int, but whoever passes True as class 1 has made a mistake.
    if isinstance(name_or_index, bool) or not hasattr(name_or_index, "__index__"):
        raise InputError(f"a class is an index or a name, not {name_or_index!r} ({type(name_or_index).__name__})")
    return _check_index(operator.index(name_or_index), classes, network)


def _check_index(index: int, classes: Sequence[str], network: str) -> int:
    if index < 0 or (classes and index >= len(classes)):
        expected = f"an index from 0 to {len(classes) - 1}" if classes else "an index from 0 on"
        raise InputError(f"{network} has no class {index}: give {expected}")
    return index


def _find_class_name(wanted: str, classes: Sequence[str], network: str) -> int:
    if not classes:
        raise InputError(f"the class names of {network} are not known: give an index instead of {wanted!r}")
    if not wanted:
        raise InputError(f"the class name is empty: give a class of {network} or its index")
    names = [name.casefold() for name in classes]
    folded = wanted.casefold()
    exact = [index for index, name in enumerate(names) if name == folded]
    found = exact or [index for index, name in enumerate(names) if folded in name]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{classes[index]} ({index})" for index in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise InputError(
            f"{wanted!r} fits {len(found)} classes of {network}: {listed}{more}. Give the whole name or the index"
        )
    near = [classes[names.index(name)] for name in difflib.get_close_matches(folded, names)]
    hint = f"near matches: {', '.join(near)}" if near else "no name comes near; give an index"
    raise InputError(f"{network} has no class {wanted!r}; {hint}")


def torchvision_models(task: str = "") -> tuple[str, ...]:
    """The names of torchvision's models for a task, from torchvision's source files.

    Args:
        task: one of :data:`TASKS`; empty for classification.

    Returns:
        The names; empty if the source files do not tell them. Then only torchvision itself can check a name.

    Example::

        >>> "resnet18" in torchvision_models(), "fcn_resnet50" in torchvision_models("segmentation")
        (True, True)
    """
    folder = _torchvision_models_folder()
    texts = [file.read_text(encoding="utf-8") for file in sorted((folder / task).glob("*.py"))] if folder else []
    return tuple(name or function for text in texts for name, function in _REGISTERED.findall(text))


def task_of(model: str) -> str:
    """The task of a model of torchvision, one of :data:`TASKS`; empty for classifiers and for other networks.

    Example::

        >>> task_of("fcn_resnet50"), task_of("resnet18")
        ('segmentation', '')
    """
    return next((task for task in TASKS if model in torchvision_models(task)), "")


@functools.cache
def torchvision_classes() -> tuple[str, ...]:
    """The names of the thousand classes of ImageNet, from torchvision's source files.

    Returns:
        The names, in the order of the scores; empty if the source files do not tell them. Then a class can be checked
        only when the network is there.

    Example::

        >>> torchvision_classes()[281]
        'tabby'
    """
    folder = _torchvision_models_folder()
    file = folder / "_meta.py" if folder else None
    if file is None or not file.is_file():
        return ()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [_CLASSES]:
            return tuple(ast.literal_eval(node.value))
    return ()


def _torchvision_models_folder() -> Path | None:
    # This finds a package without importing it.
    spec = importlib.util.find_spec("torchvision")
    locations = (
        [] if spec is None else [Path(location) / "models" for location in spec.submodule_search_locations or ()]
    )
    return next((location for location in locations if location.is_dir()), None)
