"""Fused kernels: their tolerance is in units of what the last place of the inputs does to the map."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torchvision
from torch import nn

import captum_cav
from captum_cav import LayerCAV
from captum_cav.compilation import comparing, compiled, runners
from captum_cav.compilation.recording import Recording
from captum_cav.compilation.runners import Runner
from captum_cav.errors import OptionError, RecordingError
from tests.compilation.test_equality import convolutional
from tests.support.small_networks import picture, samples, small_net


def test_a_change_in_the_last_place_is_the_smallest_there_is() -> None:
    x, index = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3])
    for moved, same, parameter in comparing.in_last_place([x, index, x], 2):
        assert torch.equal(same, index)
        assert torch.equal(parameter, x)
        between = (moved + x) / 2
        assert torch.all((between == moved) | (between == x)), "no number lies between"
        assert not torch.any(moved == x)
    for _, moved in comparing.in_last_place([index, x], 1):
        assert not torch.any(moved == x), "of words, the parameters are changed"


def test_the_tolerance_is_some_times_the_effect_of_such_changes() -> None:
    expected, off = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.2])
    wobbled = [torch.tensor([1.1, 2.0]), torch.tensor([1.0, 2.0])]
    ((deviation, allowed),) = comparing.deviations([off], [expected], [[one] for one in wobbled])
    assert deviation == pytest.approx(0.1)
    assert allowed == pytest.approx(comparing.FACTOR * 0.05)
    ((_, least),) = comparing.deviations([off], [expected], [[expected]])
    assert least == comparing.LEAST_UNITS * torch.finfo(torch.float32).eps
    # A sum in float64 of numbers in float32 is no better than these numbers.
    both = [expected, expected.double().sum()]
    (_, (_, of_sum)) = comparing.deviations([off, off.double().sum()], both, [both])
    assert of_sum == least


def off_by(share: float) -> Callable[[Recording], Runner]:
    """A way to run a recording whose results are off by a share."""

    def way(recording: Recording) -> Runner:
        run = runners.replay(recording)
        return lambda tensors: [one * (1 + share) for one in run(tensors)]

    return way


def test_kernels_that_are_off_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "ways_to_run", lambda backend, recording: [off_by(0.002), off_by(0.001)])
    cav = captum_cav.compile(LayerCAV(small_net(), "0"), backend="inductor")
    with pytest.raises(RecordingError, match=r"is off by 1\.0e-03 of its largest number, and .* is allowed"):
        cav.attribute(samples(), 1)


def test_the_fastest_kernels_that_are_right_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    never_made = mock.Mock(side_effect=AssertionError)
    monkeypatch.setattr(
        compiled, "ways_to_run", lambda backend, recording: [off_by(0.001), off_by(1e-6), runners.replay, never_made]
    )
    cav = captum_cav.compile(LayerCAV(small_net(), "0"), backend="inductor")
    expected = LayerCAV(small_net(), "0").attribute(samples(), 1)
    found = cav.attribute(samples(), 1)
    torch.testing.assert_close(found, expected * (1 + 1e-6), rtol=2e-7, atol=0)
    assert not torch.equal(found, expected), "the second way"


def test_only_frozen_kernels_are_made_for_weights() -> None:
    def ways(freeze: bool) -> list[object]:
        cav = captum_cav.compile(LayerCAV(small_net(), "0"), freeze=freeze)
        cav.attribute(samples(), 1)
        (made,) = cav._made.values()  # type: ignore[attr-defined]
        return [*runners.ways_to_run("inductor", made.recording)]

    assert ways(True) == [runners.fused_for_weights, runners.fused_between]
    assert ways(False) == [runners.fused_between]


def test_cuda_graphs_are_refused_on_a_cpu() -> None:
    compiled = captum_cav.compile(LayerCAV(small_net(), "0"), backend="cudagraphs")
    with pytest.raises(
        RecordingError, match=r"was given tensors on cpu; expected the model and all inputs on one CUDA"
    ):
        compiled.attribute(samples(), 1)


def test_kernels_are_for_one_size() -> None:
    with pytest.raises(OptionError, match='backend="inductor", whose kernels are made for one size'):
        captum_cav.compile(LayerCAV(small_net(), "0"), backend="inductor", dynamic_batch=True)


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [False, True])
def test_inductor(freeze: bool) -> None:
    net, x = convolutional(), picture()
    cav = LayerCAV(net, ["0", "3"])
    fused = captum_cav.compile(cav, backend="inductor", freeze=freeze)
    for target, inputs in ((1, x), (3, picture(2))):
        for found, expected in zip(fused.attribute(inputs, target), cav.attribute(inputs, target), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inductor_with_words() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.GELU(), nn.Flatten(), nn.Linear(12, 3)).eval()
    cav = LayerCAV(net, "0", normalize=None)
    words = torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = captum_cav.compile(cav, backend="inductor").attribute(words, 1)
    torch.testing.assert_close(found, cav.attribute(words, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_kernels_between_convolutions_keep_the_sides_of_a_map() -> None:
    """With weights drawn at random, many numbers lie near a tie. In another memory layout, a map is off by percents."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval()
    cav = LayerCAV(net, ["relu", "layer1", "layer2", "layer3"])
    fused = captum_cav.compile(cav, backend="inductor")
    for seed in range(3):
        x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(seed))
        for found, expected in zip(fused.attribute(x, seed), cav.attribute(x, seed), strict=True):
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
