"""Whether a change of the code changes a map: writes maps to a file, and compares two such files bit for bit.

    python -m benchmarks.regression write FILE [--only NAME ...] [--threads 1]
    python -m benchmarks.regression compare FILE OTHER

``write`` explains about sixty networks (torchvision's families with small pictures, tiny transformers, recurrent and
hand-written networks) and every function of ``benchmarks.coverage.operations``, under every preset. Of each network the
file holds the contributions of the inputs and of three layers, and their deltas, in float64 and in units of the score.
An attribution that is refused is kept as the type of its error.

Write one file before a change and one after the change, on the same machine with the same number of threads.
``compare`` lists what differs, by the largest difference over the largest value, and ends with exit status 1 if
anything does.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from benchmarks.coverage import operations, transformers_models
from benchmarks.coverage.problem import Problem
from benchmarks.coverage.randomise import SEED, randomised
from benchmarks.coverage.torchvision_models import build as build_torchvision
from captum_cav import InputCAV, LayerCAV, presets
from captum_cav.errors import CAVError
from tests.support import networks as hand_written

#: Networks of torchvision that take pictures of 64 x 64.
_SMALL = """
    alexnet vgg11 vgg11_bn resnet18 resnext50_32x4d densenet121 squeezenet1_1 shufflenet_v2_x0_5 mnasnet0_5
    mobilenet_v2 mobilenet_v3_small efficientnet_b0 efficientnet_v2_s regnet_y_400mf regnet_x_400mf convnext_tiny
    swin_t swin_v2_t googlenet vit_b_16
""".split()
#: Options without which they do not.
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "vit_b_16": {"image_size": 64},
}
#: Networks of torchvision that are built as the coverage benchmark builds them.
_BUILT_ELSEWHERE = "maxvit_t lraspp_mobilenet_v3_large r3d_18 fasterrcnn_mobilenet_v3_large_320_fpn".split()
#: Tiny transformers, one of each kind: encoders, decoders, mixtures of experts, state spaces, pictures, sound, series.
_TRANSFORMERS = """
    Bert DistilBert DebertaV2 FNet ModernBert GPT2 GPTNeoX Llama Qwen3 Gemma2 Falcon Bloom Mixtral DeepseekV3 Mamba
    Rwkv xLSTM RecurrentGemma T5 Bart ViT Swin ConvNext Segformer MobileViT EfficientNet Wav2Vec2 AST Whisper CLIP
    PatchTST
""".split()
_HAND_WRITTEN = ["transformer_encoder", "lstm", "functional", "reused"]
_PRESETS: dict[str, Any] = {
    **{name: name for name in presets.NAMES},
    "epsilon_gamma_box": presets.epsilon_gamma_box(-4.0, 4.0),
}


class Recurrent(nn.Module):
    """A layer of each recurrent kind, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 8, num_layers=2, batch_first=True)
        self.rnn = nn.RNN(8, 8, batch_first=True)
        self.cell = nn.LSTMCell(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores, (N, 5), of a sequence, (N, length, 6)."""
        states = self.rnn(self.gru(x)[0])[0]
        h = c = x.new_zeros(len(x), 8)
        for state in states.unbind(1):
            h, c = self.cell(state, (h, c))
        scores: torch.Tensor = self.head(h)
        return scores


class Gates(nn.Module):
    """Gates of several kinds, made by functions and written by hand, and norms of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.group = nn.GroupNorm(2, 8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.second = nn.Conv2d(8, 16, 3, stride=2)
        self.act = nn.PReLU(16)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores, (N, 5), of pictures, (N, 3, height, width)."""
        x = self.group(nn.functional.mish(self.first(x)))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True))) + self.instance(x)
        x = x * (nn.functional.relu6(x + 3) / 6) + 0.5 * x * (1 + torch.tanh(x))
        x = nn.functional.glu(self.act(self.second(x)), 1)
        x = nn.functional.avg_pool2d(nn.functional.lp_pool2d(x, 2, 2), 2)
        scores: torch.Tensor = self.head(nn.functional.normalize(x.flatten(2).amax(2)))
        return scores


def _torchvision(name: str) -> Problem:
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = randomised(torchvision.models.get_model(name, weights=None, **_OPTIONS.get(name, {})))
    return _problem(net, 2, 3, 64, 64)


def _own(name: str) -> Problem:
    return _problem(hand_written.network(name).double(), 2, *hand_written.shape_of(name))


def _problem(net: nn.Module, *shape: int) -> Problem:
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        return Problem(net, net, x, int(net(x)[0].argmax()))


def _small(make: Callable[[], nn.Module], *shape: int) -> Problem:
    torch.manual_seed(SEED)
    return _problem(randomised(make()), *shape)


def cases() -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Name and builder of each network."""
    for name in _SMALL:
        yield f"torchvision/{name}", functools.partial(_torchvision, name)
    for name in _BUILT_ELSEWHERE:
        yield f"torchvision/{name}", functools.partial(build_torchvision, name)
    for name, build in transformers_models.cases():
        if name in _TRANSFORMERS:
            yield f"transformers/{name}", build
    for name in _HAND_WRITTEN:
        yield f"own/{name}", functools.partial(_own, name)
    yield "own/recurrent", functools.partial(_small, Recurrent, 2, 5, 6)
    yield "own/gates", functools.partial(_small, Gates, 2, 3, 20, 20)


def layers_of(problem: Problem) -> dict[str, nn.Module]:
    """Three layers at a quarter, half and three quarters of the forward pass; each gives one tensor in one call."""
    calls: list[nn.Module] = []
    usable: set[nn.Module] = set()

    def note(module: nn.Module, args: Any, output: Any) -> None:
        calls.append(module)
        if isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel():
            usable.add(module)

    handles = [module.register_forward_hook(note) for module in problem.model.modules()]
    with torch.no_grad():
        problem.score(problem.inputs.clone())
    for handle in handles:
        handle.remove()
    once = [module for module in calls if module in usable and calls.count(module) == 1]
    names = {module: name for name, module in problem.model.named_modules()}
    chosen = [once[len(once) * quarter // 4] for quarter in (1, 2, 3)]
    return {names[module]: module for module in chosen}


def explain(problem: Problem, layers: dict[str, nn.Module], rules: Any) -> Iterator[tuple[str, Any]]:
    """Contributions and deltas of the inputs and of some layers, or the type of the error in their place."""
    attributions: dict[str, Any] = {"inputs": lambda: InputCAV(problem.score, rules=rules, normalize=None)}
    for name, layer in layers.items():
        attributions[name] = functools.partial(LayerCAV, problem.score, layer, rules=rules, normalize=None)
    for name, make in attributions.items():
        found = _explained(make, problem)
        if isinstance(found, str):
            yield name, found
        else:
            yield name, found[0]
            yield f"{name} delta", found[1]


def _explained(make: Callable[[], Any], problem: Problem) -> Any:
    try:
        return make().attribute(problem.inputs, problem.target, return_convergence_delta=True)
    except CAVError as error:
        return type(error).__name__


def found_of_networks(only: list[str]) -> Iterator[tuple[str, Any]]:
    """Everything about every network, by name."""
    for name, build in cases():
        if only and not any(word in name for word in only):
            continue
        print(name, flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem = build()
            layers = layers_of(problem)
            for preset, rules in _PRESETS.items():
                for place, found in explain(problem, layers, rules):
                    yield f"{name} | {preset} | {place}", found
        gc.collect()


def found_of_operations(only: list[str]) -> Iterator[tuple[str, Any]]:
    """Everything about every function of the coverage benchmark, by name."""
    for name, (function, _) in operations.CASES.items():
        if only and not any(word in f"operations/{name}" for word in only):
            continue

        def score(x: torch.Tensor, function: operations.Function = function) -> torch.Tensor:
            return operations.score(function(x))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem = Problem(score, nn.Identity(), operations.X, 0)
            for preset, rules in _PRESETS.items():
                for place, found in explain(problem._replace(target=None), {}, rules):  # type: ignore[arg-type]
                    yield f"operations/{name} | {preset} | {place}", found


def write(file: Path, only: list[str]) -> None:
    """Explain everything and write what was found."""
    tensors: dict[str, torch.Tensor] = {}
    errors: dict[str, str] = {}
    for found in (found_of_operations(only), found_of_networks(only)):
        for name, value in found:
            if isinstance(value, torch.Tensor):
                tensors[name] = value.contiguous().clone()
            else:
                errors[name] = str(value)
    save_file(tensors, file, metadata={"torch": torch.__version__, **errors})
    print(f"{len(tensors)} maps and deltas, {len(errors)} refused")


def compare(file: Path, other: Path) -> int:
    """Print what differs between two files; returns how many entries do."""
    with safe_open(file, "pt") as first, safe_open(other, "pt") as second:
        kept, refused = [set(one.keys()) for one in (first, second)], [one.metadata() for one in (first, second)]
        names = sorted(kept[0] & kept[1])
        unequal = {name: _difference(first.get_tensor(name), second.get_tensor(name)) for name in names}
        differing = [f"{size:.1e}  {name}" for name, size in unequal.items() if size]
        other_findings = [f"only in one file: {name}" for name in sorted(kept[0] ^ kept[1])]
        other_findings += [
            f"refused: {name}: {refused[0].get(name)} and {refused[1].get(name)}"
            for name in sorted(refused[0].keys() | refused[1].keys())
            if refused[0].get(name) != refused[1].get(name)
        ]
    print("\n".join([*differing, *other_findings]))
    print(f"{len(names)} maps and deltas compared, {len(names) - len(differing)} bit-equal")
    return len(differing) + len(other_findings)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference over the largest value; 0 if and only if two tensors are bit-equal."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.nan_to_num(), other.nan_to_num()
    if torch.equal(one, other):
        return 0.0
    tiny = torch.finfo(one.dtype).tiny
    return float(((one - other).abs().max() / one.abs().max().clamp(min=tiny)).clamp(min=tiny))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="explain everything and write the maps")
    writing.add_argument("file", type=Path)
    writing.add_argument("--only", nargs="+", default=[], help="what has one of these words in its name")
    writing.add_argument("--threads", type=int, default=1)
    comparing = commands.add_parser("compare", help="list what differs between two files")
    comparing.add_argument("file", type=Path)
    comparing.add_argument("other", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "compare":
        sys.exit(bool(compare(options.file, options.other)))
    torch.set_num_threads(options.threads)
    write(options.file, options.only)


if __name__ == "__main__":
    main()
