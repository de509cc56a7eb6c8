"""``internal_batch_size``: a batch that is explained in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from torch import nn

import captum_cav
from captum_cav import InputCAV, LayerCAV, NeuronCAV, scores
from captum_cav.errors import ScoreWarning
from tests.support.errors import refused
from tests.support.small_networks import Apply
from tests.support.tensors import assert_same

SIZES = (1, 2, 3, 4, 5, 9)


class Counted(nn.Module):
    """A network of integers, whose sums are exact in any order; keeps the size of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.first = nn.Linear(3, 4)
        self.act = nn.ReLU()
        self.pair = Apply(lambda x: (x[:, :2], 2 * x[:, 2:]))
        self.last = nn.Linear(4, 3)
        for parameter in self.parameters():
            values = torch.arange(parameter.numel()) * 7 % 5 - 1
            parameter.data.copy_(values.reshape(parameter.shape))

    def forward(self, x: torch.Tensor, scale: Any = 1.0, shift: Any = 0.0) -> torch.Tensor:
        self.batches.append(len(x))
        hidden = torch.cat(self.pair(self.act(self.first(x))), 1)
        scores: torch.Tensor = self.last(hidden * scale + shift)
        return scores


def batch(count: int = 5) -> torch.Tensor:
    return (torch.arange(3.0 * count).reshape(count, 3) * 5 % 7) + 1


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
        return
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


# Results -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer", ["first", "pair", ["act", "pair"]], ids=["tensor", "tuple", "list"])
@pytest.mark.parametrize(
    "options",
    [
        {"return_convergence_delta": True},
        {"attribute_to_layer_input": True, "attr_dim_summation": True},
        {"relu_attributions": True, "grad_kwargs": {"materialize_grads": True}},
    ],
    ids=["delta", "input", "relu"],
)
def test_layers_in_parts_are_those_of_the_whole_batch(size: int, layer: Any, options: dict[str, Any]) -> None:
    net, x, targets = Counted(), batch(), [[2, 0, 1, 1, 0], 1]
    cav = LayerCAV(net, layer, normalize=None)
    whole = cav.attribute_targets(x, targets, **options)
    net.batches.clear()
    assert_equal(cav.attribute_targets(x, targets, **options, internal_batch_size=size), whole)
    assert max(net.batches) == min(size, 5)
    assert sum(net.batches) == 5
    assert_equal(cav.attribute(x, targets[0], **options, internal_batch_size=size), whole[0])
    assert_equal(cav.attribute(x, torch.tensor(targets[0]), **options, internal_batch_size=size), whole[0])


@pytest.mark.parametrize("size", SIZES)
def test_inputs_and_arguments_are_cut_along_the_samples(size: int) -> None:
    net = Counted()
    cav = InputCAV(net, normalize=None)
    scale, shift = batch()[:, :1], torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for given, more in ((batch(), (scale, shift)), ((batch(), scale), shift), ((batch(), scale), 2.0)):
        whole = cav.attribute(given, 1, more, return_convergence_delta=True)
        parts = cav.attribute(given, 1, more, return_convergence_delta=True, internal_batch_size=size)
        assert_equal(parts, whole)


def test_arguments_in_structures_are_cut_too() -> None:
    net = Counted()
    cav = LayerCAV(lambda given, more: net(given["x"], more["scale"][0]), net.act, normalize=None)
    given, more = {"x": batch()}, {"scale": [batch()[:, :1]], "name": "any"}
    whole = cav.attribute((given,), 1, (more,))
    assert_equal(cav.attribute((given,), 1, (more,), internal_batch_size=2), whole)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("selector", [1, slice(0, 3), lambda out: out[:, 0] + out[:, 2]], ids=["one", "slice", "call"])
def test_neurons_in_parts_are_those_of_the_whole_batch(size: int, selector: Any) -> None:
    cav = NeuronCAV(Counted(), "act", normalize=None)
    whole = cav.attribute(batch(), selector, return_convergence_delta=True)
    assert_equal(cav.attribute(batch(), selector, return_convergence_delta=True, internal_batch_size=size), whole)


@pytest.mark.parametrize("normalize", ["score", "abs"])
@pytest.mark.parametrize("score", ["output", "log_odds"])
def test_ratios_and_log_odds_in_parts(normalize: Any, score: Any) -> None:
    cav = LayerCAV(Counted().double(), "act", normalize=normalize, score=score)
    x = batch().double()
    whole = cav.attribute(x, 1, return_convergence_delta=True)
    assert_same(cav.attribute(x, 1, return_convergence_delta=True, internal_batch_size=2), whole)


@pytest.mark.filterwarnings("ignore::captum_cav.errors.SignWarning")
@pytest.mark.parametrize("score", ["output", "logit", "log_odds"])
def test_probabilities_in_parts(score: Any) -> None:
    cav = LayerCAV(nn.Sequential(Counted(), nn.Sigmoid()).double(), "0.act", score=score)
    x = batch().double() / 9
    whole = cav.attribute(x, 1, return_convergence_delta=True)
    assert_same(cav.attribute(x, 1, return_convergence_delta=True, internal_batch_size=2), whole)


def test_wrappers_of_captum_pass_the_size_on() -> None:
    net = Counted()
    tunnel = NoiseTunnel(LayerCAV(net, ["act", "first"], normalize=None))
    options: dict[str, Any] = {"nt_type": "smoothgrad", "nt_samples": 2, "stdevs": 0.0}
    whole = tunnel.attribute(batch(), target=1, **options)
    net.batches.clear()
    assert_equal(tunnel.attribute(batch(), target=1, internal_batch_size=3, **options), whole)
    assert max(net.batches) == 3


def test_maps_in_parts_can_be_differentiated_with_respect_to_inputs() -> None:
    net = Counted()
    cav = LayerCAV(net, "act", normalize=None)
    gradients = []
    for size in (None, 2):
        x = batch().requires_grad_()
        with torch.no_grad():
            maps = cav.attribute(x, 0, grad_kwargs={"create_graph": True}, internal_batch_size=size)
        gradients.append(torch.autograd.grad((maps**2).sum(), (x, net.first.weight)))
    assert_equal(gradients[0], gradients[1])
    assert gradients[0][0].abs().min(1).values.max() > 0


def test_a_batch_that_fits_is_explained_at_once() -> None:
    net = Counted()
    LayerCAV(net, "act").attribute(batch(), 0, internal_batch_size=5)
    assert net.batches == [5]


# Which dimension is the samples' -------------------------------------------------------------------------------------


def test_a_layer_whose_samples_are_not_first_is_refused() -> None:
    """Also where its first dimension has by chance the size of the parts, here 2 and 3."""
    time_first = Apply(lambda x: x.transpose(0, 1))
    net = nn.Sequential(time_first, Apply(lambda x: x.sum((0, 2))))
    for steps, size in ((4, 2), (2, 2), (3, 3), (2, 4)):
        with refused(ValueError, "first dimension is that of the samples", "Leave out internal_batch_size", model=net):
            LayerCAV(net, "0").attribute(torch.ones(6, steps, 1), internal_batch_size=size)
    assert LayerCAV(net, "0").attribute(torch.ones(6, 2, 1)).shape == (2, 6, 1)


def test_a_layer_as_wide_as_the_parts_is_explained() -> None:
    net = Counted()
    cav = LayerCAV(net, "act", normalize=None)
    whole = cav.attribute(batch(8), 1)
    net.batches.clear()
    assert_equal(cav.attribute(batch(8), 1, internal_batch_size=4), whole)
    assert net.batches == [4, 3, 1]


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4"])
def test_what_is_no_size_is_refused(size: Any) -> None:
    net = Counted()
    said = (f"internal_batch_size is {size!r}", "expected an integer of at least 1")
    with refused(ValueError, *said, model=net):
        LayerCAV(net, "act").attribute(batch(), 0, internal_batch_size=size)
    with refused(ValueError, *said, model=net):
        InputCAV(net).attribute(batch(), 0, internal_batch_size=size)
    with refused(ValueError, *said, model=net):
        NeuronCAV(net, "act").attribute(batch(), 0, internal_batch_size=size)


@pytest.mark.parametrize("size", [2, 9])
def test_inputs_of_different_lengths_are_refused_and_the_advice_helps(size: int) -> None:
    net, shared = Counted(), torch.ones(1, 4)
    with refused(ValueError, "(5, 3), (1, 4)", "additional_forward_args", model=net):
        LayerCAV(net, "act").attribute((batch(), shared), 0, internal_batch_size=size)
    with refused(ValueError, "the shapes ()", model=net):
        InputCAV(lambda x: x.reshape(1)).attribute(torch.tensor(2.0), internal_batch_size=size)
    assert LayerCAV(net, "act").attribute(batch(), 0, shared, internal_batch_size=size).shape == (5, 4)


@pytest.mark.parametrize("size", [2, 9])
def test_targets_are_counted_before_the_batch_is_cut(size: int) -> None:
    net = Counted()
    with refused(ValueError, "target lists 4 entries for 5 samples", model=net):
        LayerCAV(net, "act").attribute(batch(), [0, 1, 2, 0], internal_batch_size=size)


def test_messages_number_the_samples_of_the_whole_batch() -> None:
    net = Counted()
    with refused(ValueError, "target[3] is 7", model=net):
        LayerCAV(net, "act").attribute(batch(), [0, 1, 2, 7, 0], internal_batch_size=2)
    x = torch.full((5, 1), 2.0)
    x[3] = 0
    with pytest.warns(ScoreWarning, match="the score of sample 3 is at or near zero"):
        InputCAV(lambda x: x[:, 0]).attribute(x, internal_batch_size=2)
    with pytest.warns(ScoreWarning, match="the score of sample 3 is at or near zero"):
        NeuronCAV(nn.Sequential(nn.Identity()), "0").attribute(x, 0, internal_batch_size=2)
    log = Apply(lambda x: x.log())
    with refused(RuntimeError, "the score is not finite in sample 3", model=log):
        InputCAV(log).attribute(x, 0, internal_batch_size=2)
    net.first.weight.data.fill_(-torch.inf)
    with refused(RuntimeError, "the contributions at the inputs are not finite in samples 0, 1:", model=net):
        InputCAV(net).attribute(batch(), 0, internal_batch_size=2)
    with refused(RuntimeError, "the contributions at the inputs are not finite in samples 2, 3:", model=net):
        InputCAV(lambda x: x if x[0, 0] > 4 else net(x)).attribute(
            torch.tensor([[5.0] * 3] * 2 + [[1.0] * 3] * 2), 0, internal_batch_size=2
        )


@pytest.mark.parametrize("size", [1, 2])
def test_one_score_or_one_neuron_for_all_samples_is_refused(size: int) -> None:
    net = Apply(lambda x: x.sum())
    with refused(ValueError, "the model gives a tensor of shape ()", "one row for each sample", model=net):
        InputCAV(net).attribute(batch(), internal_batch_size=size)
    counted = Counted()
    with refused(ValueError, "neuron_selector gives a tensor of shape ()", "one row for each sample", model=counted):
        NeuronCAV(counted, "act").attribute(batch(), lambda out: out.sum(), internal_batch_size=size)


FOR_EACH_SAMPLE: dict[str, tuple[Any, Any]] = {
    "reference has shape (4, 3)": (scores.Similarity(torch.ones(4, 3)), scores.Similarity(torch.ones(3))),
    "reference has shape (2, 3)": (scores.Similarity(torch.ones(2, 3)), scores.Similarity(torch.ones(1, 3))),
    "reference has shape (4, 3), one": (
        scores.ReconstructionError(torch.ones(4, 3)),
        scores.ReconstructionError(torch.ones(3)),
    ),
    "[0, 1, 2, 0] lists": (scores.Difference([0, 1, 2, 0], 1), scores.Difference(0, 1)),
    "[0, 1] lists": (scores.Sum(0, [0, 1]), scores.Sum(0, 1)),
    "tensor([0, 1, 2, 0]) lists": (scores.Mean(torch.tensor([0, 1, 2, 0])), scores.Mean(torch.tensor(2))),
}


@pytest.mark.parametrize("said", FOR_EACH_SAMPLE)
def test_a_score_with_something_for_each_sample_is_refused_and_the_advice_works(said: str) -> None:
    """Which samples are in a part is not known to a score."""
    net, (each, shared) = Counted(), FOR_EACH_SAMPLE[said]
    cav, x = LayerCAV(net, "act", score=each, normalize=None), batch(4)
    for one in (cav, captum_cav.compile(cav)):
        with refused(ValueError, said, "internal_batch_size", "leave out internal_batch_size", model=net):
            one.attribute(x, internal_batch_size=2)
    if "2, 3" not in said and "[0, 1] " not in said:
        assert cav.attribute(x).shape == (4, 4)
        assert torch.equal(cav.attribute(x, internal_batch_size=4), cav.attribute(x))
    found = LayerCAV(net, "act", score=shared, normalize=None)
    assert torch.equal(found.attribute(x, internal_batch_size=2), found.attribute(x))


def test_a_region_or_a_box_for_each_sample_is_refused_in_parts() -> None:
    net, x = nn.Conv2d(1, 2, 1), torch.rand(4, 1, 2, 2)
    masks = torch.ones(4, 2, 2)
    with refused(ValueError, "mask has shape (4, 2, 2), one entry for each sample", model=net):
        InputCAV(net, score=scores.Region(1, masks)).attribute(x, internal_batch_size=2)
    whole = InputCAV(net, score=scores.Region(1, masks)).attribute(x)
    parts = InputCAV(net, score=scores.Region(1, masks[0])).attribute(x, internal_batch_size=2)
    torch.testing.assert_close(parts, whole)

    def detector(x: torch.Tensor) -> torch.Tensor:
        boxes = torch.tensor([[1.0, 1.0, 2.0, 2.0], [5.0, 5.0, 2.0, 2.0]]).T.expand(len(x), 4, 2)
        return torch.cat([boxes, x.flatten(1)[:, None, :2]], 1)

    boxes = torch.tensor([[4.0, 4.0, 6.0, 6.0]]).expand(4, 4)
    with refused(ValueError, "box has shape (4, 4), one entry for each sample", model=net):
        InputCAV(detector, score=scores.Detection(boxes, label=0)).attribute(x, internal_batch_size=1)
    single = InputCAV(detector, score=scores.Detection(boxes[0], label=0)).attribute(x, internal_batch_size=1)
    assert torch.equal(single, InputCAV(detector, score=scores.Detection(boxes, label=0)).attribute(x))
