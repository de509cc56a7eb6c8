"""Why does a network take a file for Python? Contributions of bytes, shown on the words of the file.

The network is Google's ``magika`` 3.3 (Apache-2.0 licence): an embedding of each byte, GELU, a layer norm, a
convolution over five times four bytes, GELU, the maximum over the file, a layer norm, and 214 types of files. GELU and
layer norms make contributions different from gradient x activation. The weights are read from the package. No code of
the package runs::

    pip install magika==1.0.3 onnx
    python -m examples.source_code setup.py --types python --output source_code.png

The network gets 2048 bytes: the beginning of the file, padding, and the end of the file. A short file is there twice,
and the contributions of both copies are added. The padding contributes too, because the layer norm compares each place
with the mean of all places.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from captum_cav import LayerCAV
from captum_cav.errors import CAVError, InputError, ModelError
from captum_cav.visualization import show_tokens
from captum_cav.zoo.weights import packaged

INSTALL = "magika==1.0.3 onnx"
PADDING = 256
HALF = 1024  # how many bytes of the beginning, and of the end, the network gets
EXAMPLE = b'''import os

def read(path):
    """Reads a file."""
    with open(path) as file:
        return file.read()

if __name__ == "__main__":
    print(read("a.txt"))
'''


class FileTypes(nn.Module):
    """The network: 2048 bytes (N, 2048), in which 256 means padding, to the logits of 214 types (N, 214)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(257, 64)
        self.first = nn.GELU("tanh")
        self.norm = nn.LayerNorm(512, eps=1e-6)
        self.convolution = nn.Conv1d(256, 512, 5)
        self.second = nn.GELU("tanh")
        self.last_norm = nn.LayerNorm(512, eps=1e-6)
        self.dense = nn.Linear(512, 214)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        """The logits. Four bytes are one of 512 places; the first layer norm is over places, not over channels."""
        places = self.first(self.embedding(data)).reshape(len(data), 512, 256).transpose(1, 2)
        found = self.second(self.convolution(self.norm(places))).amax(2)
        logits: torch.Tensor = self.dense(self.last_norm(found))
        return logits


def file_types() -> tuple[FileTypes, list[str]]:
    """The network with its weights, and the names of the types."""
    folder = packaged("magika", "magika/models/standard_v3_3/model.onnx", INSTALL).parent
    names: list[str] = json.loads((folder / "config.min.json").read_text())["target_labels_space"]
    try:
        import onnx
    except ImportError as error:
        raise ModelError(f"reading the weights needs the package onnx: pip install {INSTALL}") from error
    graph = onnx.load(folder / "model.onnx").graph
    arrays = {one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in graph.initializer}

    def array(name: str) -> torch.Tensor:
        return next(values for full_name, values in arrays.items() if full_name.endswith(name))

    network = FileTypes().eval()
    network.load_state_dict(
        {
            # The embedding has a bias, which is the same for every byte.
            "embedding.weight": array("logits_/Const:0") + array("Dense_0/Reshape:0").flatten(),
            "norm.weight": array("LayerNorm_0/Reshape_2:0").flatten(),
            "norm.bias": array("LayerNorm_0/Reshape_3:0").flatten(),
            "convolution.weight": array("Conv_0/transpose_3:0").squeeze(3),
            "convolution.bias": array("const_fold_opt__209").flatten(),
            "last_norm.weight": array("LayerNorm_1/Reshape_2:0").flatten(),
            "last_norm.bias": array("LayerNorm_1/Reshape_3:0").flatten(),
            "dense.weight": array("Const_24:0").T,
            "dense.bias": array("Dense_1/Reshape:0").flatten(),
        }
    )
    return network, names


def ends(content: bytes) -> tuple[slice, slice]:
    """The two parts of a file that the network gets, without the white space at the beginning and at the end."""
    start, stop = len(content) - len(content.lstrip()), len(content.rstrip())
    return slice(start, start + HALF), slice(max(stop - HALF, 0), stop)


def seen(content: bytes) -> bytes:
    """The bytes of a file that the network gets: all bytes of a short file, both ends of a long file."""
    beginning, end = ends(content)
    return content if len(content.strip()) <= 2 * HALF else content[beginning] + content[end]


def padded(content: bytes) -> torch.Tensor:
    """The input of the network: the beginning of the file, padding, the end of the file; (1, 2048)."""
    beginning, end = (list(content[part]) for part in ends(content))
    return torch.tensor([beginning + [PADDING] * (2 * HALF - len(beginning) - len(end)) + end])


def logit(network: nn.Module, content: bytes, target: int) -> float:
    """The logit of a type for the bytes of a file."""
    return float(network(padded(content))[0, target].detach())


def contributions(network: nn.Module, content: bytes, target: int) -> tuple[torch.Tensor, float]:
    """The contribution of each byte to the logit of a type, in units of the logit, and that of all the padding."""
    found = LayerCAV(network, "embedding", normalize=None).attribute(padded(content), target=target)
    places = found[0].sum(1)
    beginning, end = ends(content)
    shares = torch.zeros(len(content))
    shares[beginning] += places[: len(content[beginning])]
    shares[end] += places[-len(content[end]) :]
    return shares, float(places.sum() - shares.sum())


def words(content: bytes) -> list[bytes]:
    """Divide a file into words and signs (with one space before), other white space, and line breaks."""
    return re.findall(rb" ?(?:[\w\x80-\xff]+|[^\w\s])|[ \t]+|.", content, re.DOTALL)


def by_word(pieces: list[bytes], shares: torch.Tensor) -> torch.Tensor:
    """The sum of the contributions of the bytes of each piece."""
    owners = torch.arange(len(pieces)).repeat_interleave(torch.tensor([len(piece) for piece in pieces]))
    return torch.zeros(len(pieces)).index_add(0, owners, shares)


def overwritten(pieces: list[bytes], ratios: torch.Tensor) -> bytes:
    """Overwrite the fifth of the words and signs that contributes most with x. Minus ``ratios`` gives the least."""
    visible = [index for index, piece in enumerate(pieces) if piece.strip()]
    most = set(sorted(visible, key=lambda index: -float(ratios[index]))[: max(1, len(visible) // 5)])
    return b"".join(re.sub(rb"\S", b"x", piece) if index in most else piece for index, piece in enumerate(pieces))


def check(network: nn.Module, pieces: list[bytes], ratios: torch.Tensor, target: int) -> tuple[float, float, float]:
    """The change of the logit if a fifth of the words is overwritten: the reddest, the bluest, a random one."""
    random = torch.Generator().manual_seed(0)
    before = logit(network, b"".join(pieces), target)
    red, blue, *others = (
        logit(network, overwritten(pieces, order), target) - before
        for order in (ratios, -ratios, *torch.rand(16, len(pieces), generator=random))
    )
    return red, blue, sum(others) / len(others)


def show(pieces: list[bytes], maps: dict[str, torch.Tensor]) -> Figure:
    """Draw the words of a file in the colours of each type."""
    tokens = [(piece.lstrip(b" ") or piece).decode(errors="replace") for piece in pieces]
    lines = 2 + sum(1 + len(line) // 50 for line in "".join(tokens).split("\n"))
    figure = Figure(figsize=(9, (0.3 + 0.28 * lines) * len(maps)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(maps), squeeze=False)[:, 0]
    for axis, (name, ratios) in zip(axes, maps.items(), strict=True):
        show_tokens(tokens, ratios, f"as {name}", unit="logits", axes=(figure, axis))
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.source_code", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help="by default a few lines of Python")
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="by default the best one")
    parser.add_argument("--output", type=Path, default=Path("source_code.png"))
    options = parser.parse_args()
    try:
        network, names = file_types()
        content = seen(read(options.file) if options.file else EXAMPLE)
        logits = network(padded(content))[0].detach()
        best = [names[index] for index in logits.topk(4).indices.tolist()]
        types = options.types or best[:1]
        if unknown := sorted(set(types) - set(names)):
            raise InputError(f"there is no type {', '.join(unknown)}: {', '.join(names)}")
    except CAVError as error:
        parser.error(str(error))
    print("read:", ", ".join(f"{name} {float(logits[names.index(name)]):.1f}" for name in best))
    pieces, maps = words(content), {}
    for name in types:
        target = names.index(name)
        shares, padding = contributions(network, content, target)
        maps[name] = ratios = by_word(pieces, shares)
        bias = logit(network, content, target) - float(shares.sum()) - padding
        print(f"\n{name}: logit {logit(network, content, target):+.2f}", end=" ")
        print(f"= {float(shares.sum()):+.2f} bytes {padding:+.2f} padding {bias:+.2f} biases")
        red, blue, random = check(network, pieces, ratios, target)
        print(
            f"a fifth of the words overwritten: the reddest {red:+.2f}, the bluest {blue:+.2f}, a random {random:+.2f}"
        )
    show(pieces, maps).savefig(options.output, dpi=110, bbox_inches="tight")
    print(f"\nwrote {options.output}")


def read(file: Path) -> bytes:
    """The bytes of a file."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    if not content.strip():
        raise InputError(f"there is nothing in {file} but white space")
    return content


if __name__ == "__main__":
    main()
