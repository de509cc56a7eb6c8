"""The same function has the same map: each network in every implementation that its library offers.

    python -m benchmarks.implementations [--suite transformers torchvision] [--only NAME ...]
        [--rules paper attnlrp cp_lrp] [--json FILE] [--threads 1]

``transformers`` runs each architecture of the coverage benchmark, tiny and in float64, with every implementation of
its attention and of its experts that runs in float64 on CPU. Text is also padded on its left. Where a model has an
encoder and a decoder, the inputs of the decoder are explained, too, with constant inputs of the encoder.
``torchvision`` runs each classifier as it is, exported by ``torch.export``, and lowered to the core operations of ATen.
For each preset, maps and deltas must be those of the first implementation.

Two implementations are the same function if their scores differ by less than 1e-9 of the largest score. Then

* in every sample, the map must differ by less than 1e-6 of its norm,
* in every sample, the delta must differ by less than 1e-6 of 1 plus the sum of the map's absolute values.

With ``--json``, cases that the file holds already are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import importlib.metadata
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from benchmarks.coverage import transformers_models
from benchmarks.coverage.problem import Problem
from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import CAVError

RULES = ("paper", "attnlrp", "cp_lrp")
SCORES_TOLERANCE = 1e-9
TOLERANCE = 1e-6

#: Names of implementations, the one that the others are compared with first. Each gives the network when it is called.
Builders: TypeAlias = dict[str, Callable[[], Problem]]


@dataclasses.dataclass
class Comparison:
    """How one implementation of a network differs from the first one.

    Attributes:
        suite: the library of the network.
        name: the name of the network.
        implementation: the name of the implementation.
        rules: the name of the preset.
        scores: the largest difference of the scores, over the largest score.
        map: the norm of the difference of the maps, over the norm of the map, in the worst sample.
        delta: the difference of the deltas, over 1 plus the sum of the map's absolute values, in the worst sample.
        layer: as ``map``, for a layer in the middle of the network. None where the implementation keeps no layers.
        is_offered: whether the library offers this implementation of the network.
        error: what was raised.
    """

    suite: str
    name: str
    implementation: str
    rules: str
    scores: float | None = None
    map: float | None = None
    delta: float | None = None
    layer: float | None = None
    is_offered: bool = True
    error: str = ""

    @property
    def is_same_function(self) -> bool:
        """Whether both implementations compute the same scores."""
        return self.scores is not None and self.scores < SCORES_TOLERANCE

    @property
    def is_right(self) -> bool:
        """Whether maps and deltas are equal, up to rounding."""
        found = (self.map, self.delta, 0.0 if self.layer is None else self.layer)
        # NaN is below no number.
        return not self.error and all(part is not None and part < TOLERANCE for part in found)

    def __str__(self) -> str:
        numbers = (
            f"{name} {value:.0e}"
            for name in ("scores", "map", "delta", "layer")
            if (value := getattr(self, name)) is not None
        )
        what = f"{self.name} {self.implementation} {self.rules}"
        if self.is_same_function:
            result = "ok   " if self.is_right else "FAIL "
        else:
            result = "other" if self.is_offered else "none "
        return f"{result} {what:48} {'  '.join(numbers)}  {self.error}".rstrip()


# Transformers -------------------------------------------------------------------------------------------------------


def transformers_builders(case: transformers_models.Case) -> Builders:
    """The implementations of an architecture.

    Flex attention and grouped products of experts are left out: on CPU they take no float64.

    Args:
        case: an architecture of the coverage benchmark.
    """
    options = [{"attn_implementation": "eager"}, {"attn_implementation": "sdpa"}]
    if "experts_implementation" in case.arguments:
        options.append({"attn_implementation": "eager", "experts_implementation": "batched_mm"})
    return {"+".join(changed.values()): functools.partial(_built, case, changed) for changed in options}


def _built(case: transformers_models.Case, changed: dict[str, str]) -> Problem:
    return dataclasses.replace(case, arguments={**case.arguments, **changed}).build()


def has_decoder(case: transformers_models.Case) -> bool:
    """Whether a decoder of the family attends to an encoder's output."""
    return case.kind is transformers_models.SEQ2SEQ or case.name in ("Whisper", "Speech2Text")


def with_constant_source(case: transformers_models.Case) -> transformers_models.Case:
    """A model with an encoder and a decoder. The inputs of its decoder are explained. The encoder gets constants."""
    generator = torch.Generator().manual_seed(1)
    if case.kind.argument == "input_features":
        source = {"input_features": torch.randn(tuple(case.size), generator=generator).tolist()}
    else:
        ids = torch.randint(3, transformers_models.VOCABULARY, tuple(case.size), generator=generator)
        source = {"input_ids": ids.tolist()}
    return dataclasses.replace(
        case,
        name=f"{case.name} decoder",
        kind=dataclasses.replace(transformers_models.SEQ2SEQ, argument="decoder_inputs_embeds"),
        model=case.model.replace("ForAudioClassification", "ForConditionalGeneration"),
        size=(2, 4, transformers_models.WIDTH),
        given=source,
        read=transformers_models.SEQ2SEQ.read,
    )


def takes_padding(case: transformers_models.Case) -> bool:
    """Whether a model takes a mask of its tokens, in sequences that are short enough to be padded here."""
    is_text = case.kind.argument == "inputs_embeds" and len(case.size) == 2
    return is_text and case.size[1] == 6 and "attention_mask" not in case.given


def with_padding(case: transformers_models.Case) -> transformers_models.Case:
    """A model whose first sample begins with two tokens of padding, which nothing may attend to."""
    mask = [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    return dataclasses.replace(case, name=f"{case.name} padded", given={**case.given, "attention_mask": mask})


# Torchvision --------------------------------------------------------------------------------------------------------


def torchvision_builders(name: str) -> Builders:
    """A classifier as it is, exported, exported with its modules, and lowered to core operations.

    Args:
        name: its name in torchvision.
    """
    from benchmarks.coverage import torchvision_models

    problem = functools.cache(lambda: torchvision_models.build(name))
    return exported_builders(problem)


def exported_builders(problem: Callable[[], Problem]) -> Builders:
    """A network as it is, exported, exported with its modules, and lowered to core operations.

    Args:
        problem: gives the network. Its score must be the network itself.
    """
    program = functools.cache(lambda: torch.export.export(problem().model, (problem().inputs,)))

    def of(make: Callable[[torch.export.ExportedProgram], nn.Module]) -> Callable[[], Problem]:
        def build() -> Problem:
            _, _, inputs, target = problem()
            module = make(program())
            return Problem(module, module, inputs, target)

        return build

    return {
        "eager": problem,
        "exported": of(lambda exported: exported.module()),
        "unflattened": of(torch.export.unflatten),
        "core operations": of(lambda exported: exported.run_decompositions().module()),
    }


def middle_layer(problem: Problem) -> str | None:
    """The name of a layer in the middle that runs once and gives a tensor. None if there is no such layer."""
    calls: list[str] = []

    def noting(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: calls.append(name) if isinstance(output, torch.Tensor) else None

    hooks = [module.register_forward_hook(noting(name)) for name, module in problem.model.named_modules() if name]
    try:
        with torch.no_grad():
            problem.score(problem.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    once = [name for name in calls if calls.count(name) == 1]
    return once[len(once) // 2] if once else None


# Comparison ---------------------------------------------------------------------------------------------------------


def compare(suite: str, name: str, builders: Builders, rules: Iterable[str] = RULES) -> Iterator[Comparison]:
    """Compare the maps of all implementations of a network with those of the first.

    Args:
        suite: the library of the network.
        name: the name of the network.
        builders: its implementations.
        rules: names of presets.
    """
    first, *others = builders
    try:
        reference = builders[first]()
    except Exception as error:  # noqa: BLE001 - the row says why this network does not run
        yield _not_offered(suite, name, first, error)
        return
    # Layers of an unflattened module have the names of the model's own layers.
    layer = middle_layer(reference) if "unflattened" in builders else None
    explain_reference = functools.cache(lambda preset: _explained(reference, preset, layer))
    for implementation in others:
        try:
            problem = builders[implementation]()
            with torch.no_grad():
                scores, found = (one.score(one.inputs) for one in (reference, problem))
            difference = float((found - scores).abs().max() / scores.abs().max())
        except Exception as error:  # noqa: BLE001 - the row says why this implementation does not run
            yield _not_offered(suite, name, implementation, error)
            continue
        for preset in rules:
            row = Comparison(suite, name, implementation, preset, difference)
            try:
                expected = explain_reference(preset)
                explained = _explained(problem, preset, layer if implementation == "unflattened" else None)
            except CAVError as error:
                row.error = f"{type(error).__name__}: {error}"
            else:
                _fill(row, explained, expected)
            yield row


def _not_offered(suite: str, name: str, implementation: str, error: Exception) -> Comparison:
    message = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return Comparison(suite, name, implementation, "", is_offered=False, error=message)


_Explained: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _explained(problem: Problem, preset: str, layer: str | None) -> _Explained:
    maps, delta = InputCAV(problem.score, rules=preset).attribute(
        problem.inputs, problem.target, return_convergence_delta=True
    )
    if layer is None:
        return maps, delta, None
    return maps, delta, LayerCAV(problem.model, layer, rules=preset).attribute(problem.inputs, problem.target)


def _fill(row: Comparison, found: _Explained, expected: _Explained) -> None:
    maps, delta, layer = expected
    row.map = distance(found[0], maps)
    row.delta = float(((found[1] - delta).abs() / (1 + maps.abs().flatten(1).sum(1))).max())
    if layer is not None and found[2] is not None:
        row.layer = distance(found[2], layer)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over the norm of the expected map, in the worst sample."""
    difference, size = ((found - expected).flatten(1).norm(dim=1), expected.flatten(1).norm(dim=1))
    return float((difference / size).max())


def cases(suite: str) -> Iterator[tuple[str, Builders]]:
    """Names and implementations of all networks of a suite."""
    if suite == "transformers":
        for case in transformers_models.CASES.values():
            variants = [case]
            if takes_padding(case):
                variants.append(with_padding(case))
            if has_decoder(case):
                variants.append(with_constant_source(case))
            for variant in variants:
                yield variant.name, transformers_builders(variant)
        return
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        yield name, torchvision_builders(name)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.implementations", description=__doc__)
    suites = ["transformers", "torchvision"]
    parser.add_argument("--suite", nargs="+", choices=suites, default=["transformers"])
    parser.add_argument("--only", nargs="+", default=[], help="networks whose name holds one of these")
    parser.add_argument("--rules", nargs="+", default=list(RULES), help="names of presets")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows: list[Comparison] = []
    if options.json and options.json.exists():
        rows = [Comparison(**row) for row in json.loads(options.json.read_text())["rows"]]
    done = {(row.suite, row.name) for row in rows}
    for suite in options.suite:
        for name, builders in cases(suite):
            if (suite, name) in done or (options.only and not any(word in name for word in options.only)):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for row in compare(suite, name, builders, options.rules):
                    rows.append(row)
                    print(row, flush=True)
            gc.collect()
            if options.json:
                options.json.write_text(json.dumps(_report(rows), indent=1))
        print(summary(suite, rows))


def _report(rows: Iterable[Comparison]) -> dict[str, object]:
    packages = ("captum_cav", "torch", "torchvision", "transformers")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages if find_spec(name) is not None},
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def summary(suite: str, rows: Iterable[Comparison]) -> str:
    """How many networks of a suite have equal maps in all implementations that are the same function."""
    by_network: dict[str, list[Comparison]] = {}
    for row in rows:
        if row.suite == suite and row.is_same_function:
            by_network.setdefault(row.name, []).append(row)
    equal = sum(all(row.is_right for row in found) for found in by_network.values())
    return f"{suite}: {equal} of {len(by_network)} networks with several implementations have equal maps"


if __name__ == "__main__":
    main()
