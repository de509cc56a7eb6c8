"""Why does a network that tags music hear a flute? Contributions of times and frequencies of a sound.

The network is the VGG of ``musicnn`` (Pons and Serra, 2019; ISC licence), trained on the MagnaTagATune dataset. The
weights are read from the package. No code of the package runs::

    pip install --no-deps musicnn==0.1.0
    python -m examples.audio --output audio.png
    python -m examples.audio SOUND.wav --tags guitar vocal

Without a sound file the network hears a sound that is made here, a flute and drums. The script knows where each of them
is. For the tag ``flute`` the flute should be red, for the tag ``techno`` the drums should be red.
"""

from __future__ import annotations

import argparse
import math
import wave
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from captum_cav import LayerCAV
from captum_cav.errors import CAVError, InputError
from captum_cav.visualization import show_spectrogram
from captum_cav.zoo.weights import packaged
from examples.weights import read_checkpoint

TAGS = (
    "guitar|classical|slow|techno|strings|drums|electronic|rock|fast|piano|ambient|beat|violin|vocal|synth|female|"
    "indian|opera|male|singing|vocals|no vocals|harpsichord|loud|quiet|flute|woman|male vocal|no vocal|pop|soft|sitar|"
    "solo|man|classic|choir|voice|new age|dance|male voice|female vocal|beats|harp|cello|no voice|weird|country|metal|"
    "female voice|choral"
).split("|")
RATE = 16000  # samples per second
WINDOW, HOP = 512, 256  # samples
BANDS, FRAMES = 96, 187  # the network hears 187 frames of 96 mel bands: three seconds
DEPTHS = ("pool3", "pool2", "pool1")
RULES = ("paper", "pinpoint")


def music_tagger() -> nn.Sequential:
    """The network with its weights: log-mel spectrograms (N, 1, 187, 96) to logits (N, 50), one for each tag.

    The network has five blocks of convolution, ReLU, batch norm and max pooling.
    """
    arrays = read_checkpoint(packaged("musicnn", "musicnn/MTT_vgg/.index", "--no-deps musicnn==0.1.0"))
    layers: dict[str, nn.Module] = {"norm0": nn.BatchNorm2d(1, eps=1e-3)}
    state = {}
    for block, (window, stride) in enumerate([((4, 1), 2), *3 * [((2, 2), 2)], ((4, 4), 4)], start=1):
        layers[f"conv{block}"] = nn.Conv2d(1 if block == 1 else 128, 128, 3, padding=1)
        layers[f"relu{block}"] = nn.ReLU()
        layers[f"norm{block}"] = nn.BatchNorm2d(128, eps=1e-3)
        layers[f"pool{block}"] = nn.MaxPool2d(window, stride)
        state[f"conv{block}.weight"] = arrays[f"{block}CNN/kernel"].permute(3, 2, 0, 1)
        state[f"conv{block}.bias"] = arrays[f"{block}CNN/bias"]
    for block in range(6):
        name = f"batch_normalization_{block}" if block else "batch_normalization"
        state[f"norm{block}.weight"] = arrays[f"{name}/gamma"]
        state[f"norm{block}.bias"] = arrays[f"{name}/beta"]
        state[f"norm{block}.running_mean"] = arrays[f"{name}/moving_mean"]
        state[f"norm{block}.running_var"] = arrays[f"{name}/moving_variance"]
    layers |= {"flatten": nn.Flatten(), "dense": nn.Linear(2 * 128, 50)}
    # TensorFlow flattens (time, frequency, channel), torch flattens (channel, time, frequency). One frequency is left.
    state["dense.weight"] = arrays["dense/kernel"].reshape(2, 128, 50).permute(2, 1, 0).flatten(1)
    state["dense.bias"] = arrays["dense/bias"]
    network = nn.Sequential(OrderedDict(layers)).eval()
    network.load_state_dict(state)
    return network


def log_mel(sound: torch.Tensor) -> torch.Tensor:
    """The input of the network: ``log10(1 + 10000 * power)`` in 96 mel bands. 0 is silence.

    Args:
        sound: shape (samples,), 16000 samples per second, between -1 and 1.

    Returns:
        Shape (187, 96), one frame every 16 ms, for three seconds.
    """
    spectrum = torch.stft(
        sound, WINDOW, HOP, window=torch.hann_window(WINDOW), pad_mode="constant", return_complex=True
    )
    return torch.log10(1 + 10000 * (_mel_bands() @ spectrum.abs() ** 2)).T[:FRAMES]


def _mel_bands() -> torch.Tensor:
    """Triangular filters of equal area, shape (96, 257). On Slaney's mel scale all have the same width.

    The scale is linear up to 1000 Hz and logarithmic above.
    """
    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    mels = np.linspace(0, top, BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    triangles = np.minimum((frequencies - low) / (peak - low), (high - frequencies) / (high - peak)).clip(min=0)
    return torch.from_numpy(triangles * 2 / (high - low)).float()


def flute_and_drums() -> tuple[torch.Tensor, torch.Tensor]:
    """Three seconds of an artificial flute and of artificial drums, each of shape (samples,), for addition."""
    random = torch.Generator().manual_seed(0)
    flute, drums = torch.zeros(2, FRAMES * HOP)

    def add(track: torch.Tensor, start: float, sound: torch.Tensor) -> None:
        room = track[int(start * RATE) :][: len(sound)]
        room += sound[: len(room)]

    time = torch.arange(int(0.8 * RATE)) / RATE
    swell = (time / 0.08).clamp(max=1) * ((0.8 - time) / 0.1).clamp(max=1)
    for beat, pitch in enumerate([523, 587, 659, 784]):
        phase = 2 * torch.pi * pitch * time + 0.3 * torch.sin(2 * torch.pi * 5 * time)
        breath = 0.02 * torch.randn(len(time), generator=random)
        add(flute, 0.75 * beat, 0.3 * swell * (torch.sin(phase) + 0.2 * torch.sin(2 * phase) + breath))
    time = torch.arange(int(0.3 * RATE)) / RATE
    falling = 50 * time + 7.5 * (1 - torch.exp(-time / 0.05))  # from 200 to 50 Hz
    kick = 0.64 * torch.sin(2 * torch.pi * falling) * torch.exp(-time / 0.12)
    for beat in range(6):
        hiss = torch.randn(len(time), generator=random).diff(prepend=torch.zeros(1))
        add(drums, 0.5 * beat, kick)
        add(drums, 0.5 * beat + 0.25, 0.24 * hiss * torch.exp(-time / 0.02))
    return flute, drums


def read_wave(path: Path) -> torch.Tensor:
    """The first three seconds of a WAV file with 16 bits, one channel and 16000 samples per second."""
    try:
        with wave.open(str(path)) as file:
            found = (file.getsampwidth(), file.getnchannels(), file.getframerate())
            samples = file.readframes(FRAMES * HOP)
    except (OSError, EOFError, wave.Error) as error:
        raise InputError(f"cannot read {path} as a WAV file: {error}") from error
    if found != (2, 1, RATE) or len(samples) < 2 * FRAMES * HOP:
        raise InputError(
            f"{path} has {8 * found[0]} bits, {found[1]} channels, {found[2]} samples a second and starts with "
            f"{len(samples) // (found[0] * found[1])} samples; expected 16 bits, 1 channel, {RATE} samples a second, "
            f"{FRAMES * HOP} samples or more: ffmpeg -i SOUND -ar {RATE} -ac 1 SOUND.wav"
        )
    return torch.from_numpy(np.frombuffer(samples, dtype="<i2").astype(np.float32) / 32768)


def contribution_maps(network: nn.Module, heard: torch.Tensor, tag: str, rules: str) -> list[torch.Tensor]:
    """The map (frames, bands) of a tag at each of ``DEPTHS``, in units of the logit.

    The contributions are not shares of the logit, because most of the 50 tags have a logit near 0 or below 0.
    """
    cav = LayerCAV(network, list(DEPTHS), normalize=None, rules=rules)
    return [layer.sum(1)[0] for layer in cav.attribute(heard[None, None], target=TAGS.index(tag))]


def silenced(heard: torch.Tensor, ratios: torch.Tensor) -> torch.Tensor:
    """Silence the tenth of the places that contribute most. With minus the map: those that contribute least.

    A cell of the map covers several frames and bands of the spectrogram, and all of them become 0.
    """
    most = ratios.flatten().topk(ratios.numel() // 10).indices
    kept = torch.ones(ratios.numel()).index_fill(0, most, 0).reshape(ratios.shape)
    return heard * F.interpolate(kept[None, None], heard.shape)[0, 0]


def logits(network: nn.Module, heard: Sequence[torch.Tensor], tag: str) -> torch.Tensor:
    """The logit of a tag for each spectrogram."""
    with torch.no_grad():
        found: torch.Tensor = network(torch.stack(list(heard))[:, None])[:, TAGS.index(tag)]
    return found


def check(network: nn.Module, heard: torch.Tensor, tag: str, ratios: torch.Tensor) -> tuple[float, float, float]:
    """The change of the logit if a tenth of the places is silenced: the reddest, the bluest, a random one."""
    random = torch.Generator().manual_seed(0)
    draws = [silenced(heard, torch.rand(ratios.shape, generator=random)) for _ in range(8)]
    before, red, blue, *others = logits(
        network, [heard, silenced(heard, ratios), silenced(heard, -ratios), *draws], tag
    ).tolist()
    return red - before, blue - before, sum(others) / len(others) - before


def show(heard: torch.Tensor, maps: dict[tuple[str, str], list[torch.Tensor]]) -> Figure:
    """Draw the maps: one row for each tag and rules."""
    figure = Figure(figsize=(4.6 * len(DEPTHS), 2.6 * len(maps)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(maps), len(DEPTHS), squeeze=False)
    for row, ((tag, rules), layers) in zip(axes, maps.items(), strict=True):
        for axis, depth, ratios in zip(row, DEPTHS, layers, strict=True):
            title = f"{tag}, {rules} rules, {depth}"
            show_spectrogram(heard.T, ratios.T, title, duration=3, unit="logits", axes=(figure, axis))
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.audio", description=__doc__.splitlines()[0])
    parser.add_argument("sound", nargs="?", type=Path, help="a WAV file; by default a flute over drums is made")
    parser.add_argument("--tags", nargs="+", choices=TAGS, default=["flute", "techno"], metavar="TAG")
    parser.add_argument("--output", type=Path, default=Path("audio.png"))
    options = parser.parse_args()
    try:
        network = music_tagger()
        flute, drums = flute_and_drums()
        heard = log_mel(read_wave(options.sound) if options.sound else flute + drums)
    except CAVError as error:
        parser.error(str(error))
    chances = network(heard[None, None])[0].detach().sigmoid()
    print("heard:", ", ".join(f"{TAGS[tag]} {float(chances[tag]):.0%}" for tag in chances.topk(6).indices.tolist()))
    louder = log_mel(flute) > log_mel(drums)
    maps = {}
    for tag in options.tags:
        whole, flute_alone, drums_alone = logits(network, [heard, heard * louder, heard * ~louder], tag).tolist()
        print(f"\n{tag}: logit {whole:+.2f}", end="")
        if not options.sound:
            print(f"; with the drums silenced {flute_alone:+.2f}, with the flute silenced {drums_alone:+.2f}", end="")
        print(f"\n{'a tenth of the places silenced:':>37} {'reddest':>8} {'bluest':>8} {'random':>8}")
        for rules in RULES:
            maps[tag, rules] = contribution_maps(network, heard, tag, rules)
            for depth, ratios in zip(DEPTHS, maps[tag, rules], strict=True):
                red, blue, random = check(network, heard, tag, ratios)
                print(f"{rules:>28} {depth:>8} {red:+8.2f} {blue:+8.2f} {random:+8.2f}")
    show(heard, maps).savefig(options.output, dpi=110)
    print(f"\nwrote {options.output}")


if __name__ == "__main__":
    main()
