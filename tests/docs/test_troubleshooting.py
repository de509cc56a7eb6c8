"""docs/troubleshooting.md: its headings are what the package says, its examples meet them, no message is left out."""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from captum_cav.errors import CAVError, SignWarning

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
ANY = "..."

# A message that says what was expected explains itself; of the others, these do.
SELF_EXPLANATORY = (
    "module ... has no attribute ...",
    # An option or argument: what is wrong and what would be right.
    "times; call=... is out of range",
    "there is no class ...: the model gives ... scores",
    "the layer gives ... tensors; pass a function that selects from them",
    "... gives ... tensors; pick a layer that gives one",
    "neuron_selector is ..., out of range",
    "the preset ... needs ...; pass rules=presets.",
    "masks selects nothing in ...; leave out the samples that show no object",
    "is on the meta device, which holds no numbers.",
    "the model returned no scores",
    "a wrapper of Captum, such as NoiseTunnel, takes",
    "the delta is no part of the explanation; leave it out",
    "example ... cannot be put into a grid",
    "baseline returned shape",
    "baseline has shape",
    "has no parameters that could be drawn anew",
    "a contribution is not finite, as where a score is 0; choose another class",
    # Rules: what one is for, or what it leaves undefined.
    "does not say how to share: define shares",
    "does not say how to pass contributions on: define __call__",
    "... takes a rule, as ...(rules.FlatRule())",
    "has a row in the table of operations already",
    "is for elementwise products; ... is not one",
    "is not a torch function; give the rule for its module's type instead",
    # Comparing.
    "Method takes an attribution class",
    "explains no layer, but layer=... was given; leave it out",
    "... has no option ...",
    "pick one that is reached once",
    "Grad-CAM weighs dimension 1",
    "no map of ... at ... was asked for",
    "... has no map at ...: ...",
    "to_pandas() needs the package pandas",
    "a method that is not a short name needs a name",
    "belongs to a control, which is always there; choose another",
    "the map holds NaN or infinity",
    "pass a folder that Comparison.save() has finished",
    "has format ...; this version of captum_cav reads format",
    "is not the manifest of a comparison",
    "is missing or was changed since the comparison was saved",
    # Whole datasets.
    "belongs to something else; give another output",
    "exists; give the name of a new file",
    "has no row without an error",
    "holds a job already; give another output, or resume=True",
    "holds no explained dataset; pass the output of a job",
    "was begun with other settings",
    "Ray gave up",
    "a process that reads pictures ended",
    "It is not as this package wrote it",
    "It was changed since the job wrote it",
    "cannot read the table",
    "Finished shards are kept; start the same job again when the reason is gone",
    "cannot write ",
    'engine="ray" needs Ray with Ray Data',
    "export_hdf5() needs h5py",
    "none of the first ... pictures can be",
    "row ... has no",
    "row ... of ...",
    "table() needs pandas",
    "has no label that is a class",
    "the dataset now has pictures that the job in ... was not begun with",
    "the shares of a squashed score have the sign of its logit",
    "needs the package pyarrow",
    "are no classes, which ViRelAy expects",
    "there is no folder, table or picture",
    # Commands, weights and pictures.
    "--device cuda was asked for",
    "choose another with --output DIR",
    "--target names ... classes for ... pictures",
    "is a folder; give a file with --output FILE",
    "is a folder; choose another --output",
    "or replace it with --force",
    "is read by this command, so it is not overwritten",
    "it is an address; download the file, and give its path",
    "pictures can be opened",
    "cannot read the names of the classes in",
    "turns or mirrors its pictures",
    "let the factory return captum_cav.zoo.Network",
    "a picture of yours needs --classes",
    "its pixels (mode ...) have no known range; convert it to 8 bit",
    "... has no ...",
    "... is no function: it is ...",
    "must be callable without arguments",
    "Is it installed, or its folder on PYTHONPATH?",
    "... has no class ...: give",
    "a class is an index or a name",
    "the class names of ... are not known",
    "the class name is empty",
    "pip install --force-reinstall",
    "do not fit ...: ... ...",
    "Expected a state dict",
    "only numpy arrays are admitted",
)


class Entry(NamedTuple):
    """What the page says of one error or several."""

    texts: tuple[str, ...]
    example: str | None


def entries() -> list[Entry]:
    found: list[Entry] = []
    for match in re.finditer(r"((?:^### `[^\n]+`\n)+)(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL):
        example = re.search(r"```python\n(.*?)```", match[2], re.DOTALL)
        found.append(Entry(tuple(re.findall(r"^### `(.+)`$", match[1], re.MULTILINE)), example and example[1]))
    return found


ENTRIES = entries()
TEXTS = [text for entry in ENTRIES for text in entry.texts]


@functools.cache
def messages() -> frozenset[str]:
    """The first line of each message of the package's exceptions and warnings, with ``...`` for what varies."""
    found: set[str] = set()
    for file in (ROOT / "captum_cav").rglob("*.py"):
        module = ast.parse(file.read_text())
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and re.search(r"(Error|Warning|\bwarn)$", ast.unparse(node.func)):
                written = [text.split("\n")[0] for text in texts_of(node.args[0], module)] if node.args else []
                assert written or not node.args, f"{file.name}:{node.lineno}: what is said there cannot be read"
                found.update(re.sub(r"\.{4,}", ANY, text) for text in written)
    return frozenset(found)


def texts_of(node: ast.expr | None, module: ast.Module) -> Iterator[str]:
    """What an expression may say: a string, a formatted one, a constant's, what a function of the module returns."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else ANY for part in parts)
        case ast.IfExp(body=body, orelse=other):
            yield from texts_of(body, module)
            yield from texts_of(other, module)
        case ast.Call(func=ast.Attribute(value=template, attr="format")):
            yield from (re.sub(r"\{[^}]+\}", ANY, text) for text in texts_of(template, module))
        case ast.Call(func=ast.Name(id=name)):
            for function in (one for one in module.body if isinstance(one, ast.FunctionDef) and one.name == name):
                for statement in (one for one in ast.walk(function) if isinstance(one, ast.Return)):
                    yield from texts_of(statement.value, module)
        case ast.Name(id=name):
            for statement in module.body:
                if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
                    yield from texts_of(statement.value, module)


def fits(pattern: str, text: str) -> bool:
    """Whether a text is a pattern's, whose ``...`` stand for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split(ANY))), text, re.DOTALL) is not None


def says(message: str, heading: str) -> bool:
    """Whether a heading is a message with some of what varies filled in, not everything."""
    return fits(message, heading) and 2 * len(message.replace(ANY, "")) > len(heading.replace(ANY, ""))


@pytest.mark.parametrize("text", TEXTS)
def test_every_heading_is_a_message_of_the_package(text: str) -> None:
    assert any(says(message, text) for message in messages())


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.example], ids=lambda entry: entry.texts[0][:40])
def test_every_example_meets_its_errors_and_nothing_else(entry: Entry) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    prelude = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert prelude is not None
    assert entry.example is not None
    exec(prelude[1], names)  # noqa: S102
    met = []
    for statement in ast.parse(entry.example).body:
        assert statement.end_lineno is not None
        last = entry.example.splitlines()[statement.end_lineno - 1]
        code = compile(ast.Module([statement], []), "example", "exec")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if last.endswith("# raises"):
                with pytest.raises(CAVError) as caught:
                    exec(code, names)  # noqa: S102
                met.append(str(caught.value).split("\n")[0])
            else:
                exec(code, names)  # noqa: S102
        warns = last.endswith("# warns")
        # The models are random, so their scores may be negative.
        of_ours = [
            str(one.message)
            for one in warned
            if one.category.__module__ == "captum_cav.errors" and (warns or one.category is not SignWarning)
        ]
        assert bool(of_ours) == warns
        met += of_ours
    for said in met:
        assert any(fits(text, said) for text in entry.texts), said
    assert met, "an example shows the error"


def test_the_page_explains_every_message_that_does_not_explain_itself() -> None:
    bare = {text for text in messages() if "expected" not in text and not any(says(text, one) for one in TEXTS)}
    unexplained = sorted(text for text in bare if not any(one in text for one in SELF_EXPLANATORY))
    assert not unexplained, "\n".join(
        ["needs a heading in docs/troubleshooting.md, or to be listed here:", *unexplained]
    )
    idle = [one for one in SELF_EXPLANATORY if not any(one in text for text in bare)]
    assert not idle, "\n".join(["nothing says that any more, or it has a heading:", *idle])
