"""Comparisons of methods on token ids, series and signals."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from captum.attr import (
    FeatureAblation,
    KernelShap,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    LLMAttribution,
    Occlusion,
    Saliency,
    ShapleyValueSampling,
    TextTokenInput,
)
from torch import nn

from captum_cav import Comparison, LayerCAV, Method, compare
from captum_cav.comparison import language_model_method
from captum_cav.errors import CAVTypeError, InputError, MethodError, OptionError
from tests.support.small_networks import seeded

IDS = torch.tensor([[5, 2, 8, 1, 3, 7], [4, 4, 9, 6, 1, 2]])
MASK = 0
TARGETS = [3, 7]


class Reader(nn.Module):
    """The scores of the next token, of ten."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.mix = nn.Linear(4, 5)
        self.head = nn.Linear(30, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.embedding(ids)).relu().flatten(1))


def reader() -> Reader:
    with seeded():
        return Reader().eval()


def signal_network() -> nn.Module:
    with seeded():
        return nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(16, 3)
        ).eval()


METRICS: dict[str, dict[str, Any]] = {
    "deletion": {"baseline": MASK, "steps": 3},
    "insertion": {"baseline": MASK, "steps": 3},
    "single_deletion": {"baseline": MASK, "cells": 3},
    "effect_agreement": {"baseline": MASK, "cells": 3},
    "sparseness": {},
    "agreement": {},
    "model_randomisation": {"stages": 2},
    "random_logit": {},
    "pointing_hit": {},
}


def test_methods_are_measured_on_token_ids(tmp_path: Path) -> None:
    masks = torch.zeros(2, 6, dtype=torch.bool)
    masks[:, 2:4] = True
    net = reader()
    methods = {
        "CAV": "cav",
        "gradient": "layer_gradient_x_activation",
        "IG": Method(LayerIntegratedGradients, baselines=MASK, n_steps=2),
        "ablation": Method(FeatureAblation, baselines=MASK),
        "mine": lambda ids, targets: ids.float(),
    }
    report = compare(net, IDS, TARGETS, methods, ["embedding", "mix"], METRICS, masks=masks, progress=False, repeats=1)
    expected = LayerCAV(net, "embedding", normalize="abs").attribute(IDS, TARGETS).sum(-1)
    torch.testing.assert_close(report.maps["CAV", "embedding"], expected)
    assert report.raw["CAV", "mix"].shape == (2, 6)
    base = net(IDS)[range(2), TARGETS]
    without = torch.stack([net(IDS.index_fill(1, torch.tensor([n]), MASK))[range(2), TARGETS] for n in range(6)], 1)
    torch.testing.assert_close(report.raw["ablation", "input"], (base[:, None] - without).detach())
    assert report.settings.size == (6,)
    for row in report.rows:
        if row.method in ("CAV", "gradient", "IG", "ablation"):
            assert not any(math.isnan(value) for name, value in row.metrics.items() if name != "agreement")
    assert ("uniform", "embedding") in report.maps
    first = next(csv.DictReader(io.StringIO(report.to_csv())))
    assert first["length"] == "6"
    assert "maps of 6" in report.to_markdown()
    assert not any(math.isnan(value) for value in list(report.agreement().values())[:1])
    report.save(tmp_path / "saved")
    again = Comparison.load(tmp_path / "saved")
    assert [row.native_shape for row in again.rows] == [row.native_shape for row in report.rows]


def test_the_figure_has_the_words_or_the_curve() -> None:
    report = compare(reader(), IDS, 3, ["cav", "cav:gamma"], ["embedding"], (), progress=False, repeats=1)
    figure = report.figure(1, ["a", "good", "film", "about", "a", "dog"])
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts.count("film") == 2
    assert [axis.get_title("left") for axis in figure.axes] == ["cav at embedding", "cav:gamma at embedding"]
    assert len(report.figure().axes) == 2 * 2  # a bar of colours beside each map
    with pytest.raises(InputError, match="2 words were given, and the map of cav at embedding has 6 places"):
        report.figure(0, ["too", "few"])


def test_methods_are_measured_on_signals() -> None:
    net, x = signal_network(), torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0))
    names = ["cav", "cav:gamma", "gradcam", "occlusion", "integrated_gradients", "saliency"]
    report = compare(net, x, 1, names, ["1", "input"], progress=False, repeats=1, on_error="record")
    assert report.raw["cav", "1"].shape == (2, 8)
    torch.testing.assert_close(report.raw["gradcam", "1"].shape, (2, 8))
    torch.testing.assert_close(report.raw["cav", "input"].sum(1), report.maps["cav", "input"].sum(1))
    with pytest.raises(MethodError, match="belong to 8 places, and which dimension has the places is not clear"):
        compare(net, x, 1, ["cav"], ["2"], (), progress=False)
    pooled = compare(net, x, 1, ["cav"], ["2"], ["deletion"], channels=1, progress=False, repeats=1)
    assert pooled.raw["cav", "2"].shape == (2, 4)
    assert pooled.maps["cav", "2"].shape == (2, 8)
    assert len(pooled.figure(0, x[0, 0]).axes) == 2

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.mT)

    turned = compare(Turned().eval(), x.mT, 1, ["cav"], ["input"], ["deletion"], channels=-1, progress=False, repeats=1)
    deletion = turned.rows[0].metrics["deletion"]
    with_zeros = {"deletion": {"baseline": "zero"}}
    same = compare(net, x, 1, ["cav"], ["input"], with_zeros, progress=False, repeats=1)
    assert deletion == pytest.approx(same.rows[0].metrics["deletion"])


def test_series_are_compared() -> None:
    with seeded():
        net = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    report = compare(net, x, 1, ["cav", "occlusion", "lrp"], ["input"], progress=False, repeats=1)
    torch.testing.assert_close(report.raw["cav", "input"].shape, (2, 8))
    assert not any(math.isnan(row.metrics["deletion"]) for row in report.rows)


def test_grad_cam_needs_channels_in_front_of_the_places() -> None:
    with pytest.raises(MethodError, match="Grad-CAM weighs dimension 1, but layer 'mix' of shape"):
        compare(reader(), IDS[:1], 3, ["gradcam"], ["mix"], (), progress=False)


def test_what_does_not_fit_is_refused() -> None:
    def run(methods: Any = ("cav",), layers: Any = ("embedding",), metrics: Any = (), **options: Any) -> Comparison:
        return compare(reader(), IDS, 3, methods, layers, metrics, progress=False, repeats=1, **options)

    with pytest.raises(OptionError, match=r"'deletion' removes tokens and was told no id .*baseline.*mask_token_id"):
        run(metrics=["deletion"])
    run(metrics={"deletion": {"baseline": MASK}})
    for name in ("layer_integrated_gradients", "occlusion", "gradient_shap"):
        with pytest.raises(OptionError, match="compares with a baseline, and inputs are token ids; expected the id of"):
            run([name])
    run({"occlusion": Method(Occlusion, baselines=MASK, sliding_window_shapes=(1,))})
    at_input = run(layers=["input"]).raw["cav", "input"]
    torch.testing.assert_close(at_input, run().raw["cav", "embedding"])
    with pytest.raises(OptionError, match=r'size is \(2, 3\); expected "input" or \(length,\)'):
        run(size=(2, 3))
    with pytest.raises(InputError, match=r"masks have shape \(2, 5\); expected \(2, 6\)"):
        run(masks=torch.ones(2, 5) > 0)


class Language(nn.Module):
    """A causal language model as Captum expects them: the scores of the last position are those of the reader."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = reader()
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.reader(input_ids)[:, None])


def test_captums_methods_of_language_models() -> None:
    """The oracle is the logarithm of the probability itself, and Captum's class on one prompt."""
    net = reader()
    methods = {
        "CAV": "cav",
        "LLM IG": language_model_method(LayerIntegratedGradients, baseline=MASK, n_steps=40),
        "LLM gradient": language_model_method(LayerGradientXActivation, baseline=MASK),
        "LLM ablation": language_model_method(FeatureAblation, baseline=MASK),
        "LLM Shapley": language_model_method(ShapleyValueSampling, baseline=MASK, n_samples=4),
        "LLM kernel": language_model_method(KernelShap, baseline=MASK, n_samples=10),
    }
    metrics = {"deletion": {"baseline": MASK}}
    report = compare(net, IDS, TARGETS, methods, ["embedding"], metrics, progress=False, repeats=1)
    logs = net(IDS).log_softmax(1)[range(2), TARGETS].detach()
    nothing = net(torch.full_like(IDS, MASK)).log_softmax(1)[range(2), TARGETS].detach()
    for name in ("LLM IG", "LLM Shapley"):
        (place,) = [place for place in report.raw if place[0] == name]
        torch.testing.assert_close(report.raw[place].sum(1), logs - nothing, atol=2e-2, rtol=2e-2)
    without = torch.stack(
        [net(IDS.index_fill(1, torch.tensor([n]), MASK)).log_softmax(1)[range(2), TARGETS] for n in range(6)], 1
    )
    torch.testing.assert_close(report.raw["LLM ablation", "input"], (logs[:, None] - without).detach())
    gradient = LayerGradientXActivation(lambda ids: net(ids).log_softmax(1), net.embedding).attribute(IDS, TARGETS)
    torch.testing.assert_close(report.raw["LLM gradient", "embedding"], gradient.sum(-1).detach())
    language = Language()

    class Tokens:
        def encode(self, text: str, return_tensors: Any = None, **_: Any) -> Any:
            return IDS[:1]

        def convert_ids_to_tokens(self, ids: Any) -> list[str]:
            return [str(one) for one in ids]

        def decode(self, ids: Any) -> str:
            return "3"

        def __call__(self, text: str, **_: Any) -> Any:
            return {"input_ids": [3], "offset_mapping": [(0, 1)]}

    prompt = TextTokenInput("", Tokens(), baselines=MASK)
    of_captum = LLMAttribution(FeatureAblation(language), Tokens()).attribute(
        prompt, torch.tensor([3]), use_cached_outputs=False
    )
    torch.testing.assert_close(report.raw["LLM ablation", "input"][0], of_captum.seq_attr)


def test_methods_of_language_models_refuse_what_they_cannot_do() -> None:
    with pytest.raises(CAVTypeError, match=r"language_model_method was given .*Saliency.*; expected one of Captum's"):
        language_model_method(Saliency, baseline=0)
    with pytest.raises(OptionError, match="LayerIntegratedGradients has no option 'steps'"):
        language_model_method(LayerIntegratedGradients, baseline=0, steps=3)
    with pytest.raises(OptionError, match="FeatureAblation explains no layer"):
        language_model_method(FeatureAblation, "embedding", baseline=0)
    net, x = signal_network(), torch.randn(1, 2, 8)
    methods = {"ablation": language_model_method(FeatureAblation, baseline=0)}
    with pytest.raises(MethodError, match=r"inputs have shape \(1, 2, 8\) and torch.float32; expected token ids"):
        compare(net, x, 1, methods, metrics=(), progress=False)
