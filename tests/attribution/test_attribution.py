"""LayerCAV, InputCAV and NeuronCAV as a Captum user meets them."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam, LayerGradientXActivation, NoiseTunnel
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from captum_cav.errors import CAVError, CAVTypeError, LayerError, ModelError, TargetError
from tests.support.ids import without_address
from tests.support.networks import network, shape_of

LAYERS = ["maxpool", "layer1", "layer2", "layer3", "layer4"]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return copy.deepcopy(network("resnet18")).double()


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def small_net() -> nn.Sequential:
    torch.manual_seed(5)
    layers = (nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4 * 4, 6), nn.GELU(), nn.Linear(6, 3))
    return nn.Sequential(*layers).double()


SAMPLES = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# Layers, samples, targets ------------------------------------------------------------------------------------------


def test_five_layers_at_once_equal_five_single_calls(resnet: nn.Module, pictures: torch.Tensor) -> None:
    together, deltas = LayerCAV(resnet, LAYERS).attribute(pictures, 7, return_convergence_delta=True)
    for name, ratios, delta in zip(LAYERS, together, deltas, strict=True):
        alone, its_delta = LayerCAV(resnet, name).attribute(pictures, 7, return_convergence_delta=True)
        assert_same(ratios, alone)
        torch.testing.assert_close(delta, its_delta, rtol=0, atol=1e-10)
        assert delta.abs().max() < 1e-10


def test_order_and_repetition_of_layers_do_not_matter(resnet: nn.Module, pictures: torch.Tensor) -> None:
    found = LayerCAV(resnet, ["layer3", "layer1", "layer3"]).attribute(pictures, 7)
    assert_same(found[0], found[2])
    assert_same(found[1], LayerCAV(resnet, "layer1").attribute(pictures, 7))


def test_a_batch_equals_its_samples(resnet: nn.Module, pictures: torch.Tensor) -> None:
    targets = [1, 2, 3]
    batch, delta = LayerCAV(resnet, "layer2").attribute(pictures, targets, return_convergence_delta=True)
    for index, target in enumerate(targets):
        one, its_delta = LayerCAV(resnet, "layer2").attribute(
            pictures[index : index + 1], target, return_convergence_delta=True
        )
        assert_same(batch[index : index + 1], one)
        torch.testing.assert_close(delta[index : index + 1], its_delta, rtol=0, atol=1e-10)


def test_delta_is_per_sample_also_where_samples_are_not_in_the_first_dimension() -> None:
    net = copy.deepcopy(network("lstm")).double()
    x = torch.randn(4, *shape_of("lstm"), dtype=torch.float64)
    shares = []
    for normalize in ("score", None):
        ratios, delta = LayerCAV(net, "head", normalize=normalize).attribute(
            x, 1, attribute_to_layer_input=True, return_convergence_delta=True
        )
        assert delta.abs().max() < 1e-12
        shares.append(ratios.sum(1))
    scores = net(x)[:, 1].detach()
    assert_same(shares[0] * scores, shares[1])
    # The head's bias is the only constant behind its input.
    assert_same(scores - shares[1], net.head.bias[1].detach().expand(4))


def test_what_bypasses_a_layer_stays_unexplained_in_one_pass_as_in_two() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(x + torch.relu(self.branch(x)))

    torch.manual_seed(1)
    net, x = Residual().double(), torch.randn(2, 3, dtype=torch.float64)
    _, (of_stem, of_branch) = LayerCAV(net, ["stem", "branch"]).attribute(x, 0, return_convergence_delta=True)
    _, alone = LayerCAV(net, "branch").attribute(x, 0, return_convergence_delta=True)
    bypass = (net.stem(x) @ net.head.weight[0] / net(x)[:, 0]).detach()
    assert of_stem.abs().max() < 1e-12
    assert_same(of_branch, bypass)
    assert_same(alone, bypass)


@pytest.mark.parametrize(
    "target",
    [
        1,
        -2,
        (1,),
        torch.tensor(1),
        torch.tensor([1]),
        [1, 1, 1],
        [(1,), (1,), (1,)],
        torch.tensor([1, 1, 1]),
    ],
    ids=str,
)
def test_every_form_of_target_gives_the_same_numbers(target: Any) -> None:
    net = small_net()
    assert_same(LayerCAV(net, "1").attribute(SAMPLES, target), LayerCAV(net, "1").attribute(SAMPLES, 1))


def test_dense_outputs_take_a_tuple() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 5, 1)).double()
    ratios = LayerCAV(net, "1").attribute(SAMPLES, (4, 2, 3))
    nonzero = ratios.abs().sum((0, 1)).nonzero().tolist()
    assert nonzero == [[2, 3]]
    mixed = LayerCAV(net, "1").attribute(SAMPLES, [(4, 2, 3), (0, 0, 0), (4, 2, 3)])
    assert_same(mixed[0], ratios[0])
    assert mixed[1].abs().sum(0).nonzero().tolist() in ([[0, 0]], [])


def test_one_score_a_sample_needs_no_target() -> None:
    net = small_net()
    expected = LayerCAV(net, "1").attribute(SAMPLES, 2)
    layer = net[1]
    assert_same(LayerCAV(lambda x: net(x)[:, 2], layer).attribute(SAMPLES), expected)
    assert_same(LayerCAV(lambda x: net(x)[:, 2:], layer).attribute(SAMPLES), expected)
    assert_same(LayerCAV(lambda x: net(x)[0, 2], layer).attribute(SAMPLES[:1]), expected[:1])


def test_many_targets_in_one_forward_pass() -> None:
    net = small_net()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    found = LayerCAV(net, ["1", "4"]).attribute_targets(SAMPLES, [0, [1, 2, 0], 2], return_convergence_delta=True)
    assert len(calls) == 1
    for target, (ratios, deltas) in zip([0, [1, 2, 0], 2], found, strict=True):
        expected, its_deltas = LayerCAV(net, ["1", "4"]).attribute(SAMPLES, target, return_convergence_delta=True)
        for a, b in zip([*ratios, *deltas], [*expected, *its_deltas], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert LayerCAV(net, "1").attribute_targets(SAMPLES, []) == []


# Forms of layers, inputs and results -------------------------------------------------------------------------------


def test_layers_by_module_and_by_name_and_results_by_the_layers_form() -> None:
    net = small_net()
    by_name = LayerCAV(net, "1").attribute(SAMPLES, 0)
    by_module = LayerCAV(net, net[1]).attribute(SAMPLES, 0)
    assert_same(by_name, by_module)
    listed = LayerCAV(net, [net[1], "3"]).attribute(SAMPLES, 0)
    assert isinstance(listed, list)
    assert_same(listed[0], by_name)
    assert listed[1].shape == (3, 6)
    assert isinstance(LayerCAV(net, ["1"]).attribute((SAMPLES,), 0), list)


def test_a_layers_input_is_its_predecessors_output() -> None:
    net = small_net()
    at_input = LayerCAV(net, "3").attribute(SAMPLES, 0, attribute_to_layer_input=True)
    assert_same(at_input, LayerCAV(net, "2").attribute(SAMPLES, 0))


def test_a_layers_input_is_found_among_keyword_arguments() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(signal=x * 2)

    class Inner(nn.Module):
        def forward(self, signal: torch.Tensor) -> torch.Tensor:
            return signal.sum(1)

    x = torch.tensor([[1.0, 3.0]])
    assert_same(LayerCAV(Outer(), "inner").attribute(x, attribute_to_layer_input=True), torch.tensor([[0.25, 0.75]]))


def test_a_layer_of_several_tensors_gives_a_tuple() -> None:
    class Split(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return x[:, :1], {"rest": x[:, 1:], "count": torch.tensor(3)}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.split = Split()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, more = self.split(x)
            return first[:, 0] + 2 * more["rest"].sum(1)

    found = LayerCAV(Net(), "split").attribute(torch.tensor([[2.0, 1.0, 3.0]]))
    assert_same(found, (torch.tensor([[0.2]]), torch.tensor([[0.2, 0.6]])))


def test_unused_tensors_of_a_layer_get_zeros() -> None:
    net = copy.deepcopy(network("lstm")).double()
    output, hidden, cell = LayerCAV(net, "lstm").attribute(torch.randn(2, 7, 6, dtype=torch.float64), 0)
    assert output.abs().sum() > 0
    assert hidden.abs().sum() == 0
    assert cell.abs().sum() == 0


def test_channels_are_summed_and_negative_contributions_dropped_when_asked() -> None:
    net = small_net()
    plain = LayerCAV(net, "1").attribute(SAMPLES, 0)
    summed = LayerCAV(net, "1").attribute(SAMPLES, 0, attr_dim_summation=True)
    assert_same(summed, plain.sum(1, keepdim=True))
    both = LayerCAV(net, "1").attribute(SAMPLES, 0, attr_dim_summation=True, relu_attributions=True)
    assert_same(both, plain.sum(1, keepdim=True).relu())


def test_normalizations_are_the_same_contributions_over_p_its_size_and_one() -> None:
    net = small_net()
    scores = net(SAMPLES)[:, 1].detach()[:, None]
    assert (scores < 0).any(), "the example should have a negative score"
    units = LayerCAV(net, "4", normalize=None).attribute(SAMPLES, 1)
    assert_same(LayerCAV(net, "4").attribute(SAMPLES, 1), units / scores)
    assert_same(LayerCAV(net, "4", normalize="abs").attribute(SAMPLES, 1), units / scores.abs())
    assert_same(units.sum(1), scores[:, 0] - net[5].bias[1].detach())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0, mode: str = "sum") -> torch.Tensor:
        assert mode in ("sum", "difference")
        b = self.right(b) * scale
        return self.head(torch.relu(self.left(a) + (b if mode == "sum" else -b)))


def test_several_inputs_and_additional_arguments() -> None:
    torch.manual_seed(2)
    net = TwoInputs().double()
    a, b = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    found, delta = InputCAV(net).attribute((a, b), 1, (3.0, "difference"), return_convergence_delta=True)
    leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
    scores = net(*leaves, 3.0, "difference")[:, 1]
    gradients = torch.autograd.grad(scores.sum(), leaves)
    for part, leaf, gradient in zip(found, leaves, gradients, strict=True):
        assert_same(part, (leaf * gradient / scores[:, None]).detach())
    assert delta.abs().max() < 1e-12
    single = LayerCAV(net, "left").attribute((a, b), 1, 2.0)
    assert_same(single, LayerCAV(net, "left").attribute((a, b), 1, (2.0, "sum")))
    assert isinstance(InputCAV(net).attribute((a, b), 1), tuple)
    assert isinstance(InputCAV(lambda x: net(x, b)).attribute(a, 1), torch.Tensor)


def test_embeddings_are_explained_from_token_ids() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Embedding(11, 5), nn.Flatten(), nn.Linear(20, 2)).double()
    ids = torch.tensor([[1, 2, 3, 4]])
    ratios, delta = LayerCAV(net, "0").attribute(ids, 1, return_convergence_delta=True)
    score = net(ids)[0, 1].detach()
    assert_same(ratios, (net[0](ids) * net[2].weight[1].reshape(4, 5) / score).detach())
    assert delta.abs().item() < 1e-12


def test_a_plain_function_is_explained_like_a_module() -> None:
    net = small_net()
    expected = LayerCAV(net, "1").attribute(SAMPLES, 2)
    assert_same(LayerCAV(lambda x: net(x), net[1]).attribute(SAMPLES, 2), expected)
    assert_same(LayerCAV(net.forward, net[1]).attribute(SAMPLES, 2), expected)


# Neurons -----------------------------------------------------------------------------------------------------------


def test_a_neuron_is_explained_like_a_score() -> None:
    net = small_net()
    expected = InputCAV(net[:4]).attribute(SAMPLES, 2)
    assert_same(NeuronCAV(net, "3").attribute(SAMPLES, 2), expected)
    assert_same(NeuronCAV(net, net[4]).attribute(SAMPLES, (2,), attribute_to_neuron_input=True), expected)
    assert_same(NeuronCAV(net, "3").attribute(SAMPLES, lambda values: values[:, 2]), expected)


def test_a_slice_of_neurons_is_explained_as_their_sum() -> None:
    net = small_net()
    contributions, delta = NeuronCAV(net, "1", normalize=None).attribute(
        SAMPLES, (slice(0, 2), 1, 1), return_convergence_delta=True
    )
    parts = [NeuronCAV(net, "1", normalize=None).attribute(SAMPLES, (channel, 1, 1)) for channel in (0, 1)]
    assert_same(contributions, parts[0] + parts[1])
    assert delta.abs().max() < 1e-12


def test_what_runs_behind_a_neuron_needs_no_rules_and_may_write_into_its_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True), Apply(torch.special.i0), nn.Linear(2, 1)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    assert_same(NeuronCAV(net, "0").attribute(x, 1), InputCAV(net[0]).attribute(x, 1))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def test_a_neuron_of_a_layer_that_is_reached_twice_is_one_of_a_call() -> None:
    torch.manual_seed(6)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    net = nn.Sequential(*net, *net)
    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(LayerError, match="reached 2 times; choose one with call=0"):
        NeuronCAV(net, net[2]).attribute(x, 1)
    assert_same(NeuronCAV(net, net[2], call=0).attribute(x, 1), InputCAV(net[:3]).attribute(x, 1))
    assert_same(NeuronCAV(net, net[2], call=-1).attribute(x, 1), InputCAV(net).attribute(x, 1))


@pytest.mark.parametrize(
    ("selector", "error", "message"),
    [
        (99, TargetError, r"neuron_selector is 99, out of range for a layer of shape \(3, 6\)"),
        ((1, 2), TargetError, r"neuron_selector is \(1, 2\) for a layer of shape \(3, 6\); expected one integer"),
        ("a", CAVTypeError, r"neuron_selector is 'a' \(str\); expected one integer or slice for each of the sizes"),
        (None, CAVTypeError, r"neuron_selector is None \(NoneType\)"),
    ],
    ids=str,
)
def test_a_neuron_out_of_range_is_refused(selector: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NeuronCAV(small_net(), "3").attribute(SAMPLES, selector)


# Beside Captum -----------------------------------------------------------------------------------------------------


def test_first_arguments_stand_in_captums_order() -> None:
    ours = list(inspect.signature(LayerCAV.attribute).parameters)
    captums = list(inspect.signature(LayerGradientXActivation.attribute).parameters)
    assert ours[:5] == captums[:5]
    assert list(inspect.signature(LayerCAV.__init__).parameters)[:4] == ["self", "forward_func", "layer", "device_ids"]


def test_it_is_a_captum_layer_attribution() -> None:
    net = small_net()
    cav = LayerCAV(net, "1")
    assert isinstance(cav, LayerAttribution)
    assert cav.multiplies_by_inputs
    assert cav.has_convergence_delta()
    assert LayerCAV.get_name() == "Layer C A V"
    assert cav.layer is net[1]


def test_equals_gradient_x_activation_over_the_score_on_a_relu_net(resnet: nn.Module, pictures: torch.Tensor) -> None:
    modules = [resnet.get_submodule(name) for name in LAYERS]
    captums = LayerGradientXActivation(resnet, modules).attribute(pictures, 7)
    ours = LayerCAV(resnet, LAYERS, normalize=None).attribute(pictures, 7)
    for a, b in zip(ours, captums, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-8, atol=1e-10)


def test_equals_grad_cam_before_global_average_pooling(resnet: nn.Module, pictures: torch.Tensor) -> None:
    cam = LayerGradCam(resnet, resnet.layer4).attribute(pictures, 7).detach()
    ours = LayerCAV(resnet, "layer4", normalize=None).attribute(pictures, 7, attr_dim_summation=True)
    torch.testing.assert_close(ours, cam, rtol=1e-8, atol=1e-10)


def test_noise_tunnel_averages_it() -> None:
    net = small_net()
    tunnel = NoiseTunnel(LayerCAV(net, "1"))
    exact = LayerCAV(net, "1").attribute(SAMPLES, 0)
    torch.manual_seed(0)
    averaged = tunnel.attribute(SAMPLES, nt_type="smoothgrad", nt_samples=4, stdevs=1e-6, target=0)
    torch.testing.assert_close(averaged, exact, rtol=1e-3, atol=1e-5)


def test_interpolate_brings_a_map_to_the_pictures_size(resnet: nn.Module, pictures: torch.Tensor) -> None:
    ratios = LayerCAV(resnet, "layer4").attribute(pictures, 7, attr_dim_summation=True)
    assert LayerCAV.interpolate(ratios, (64, 64)).shape == (3, 1, 64, 64)


# The graph ---------------------------------------------------------------------------------------------------------


def test_nothing_before_the_first_layer_builds_a_graph() -> None:
    seen: dict[str, bool] = {}
    net = small_net()
    for name, module in net.named_children():
        module.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out.requires_grad}))
    LayerCAV(net, ["3", "4"]).attribute(SAMPLES, 0)
    assert seen == {"0": False, "1": False, "2": False, "3": False, "4": True, "5": True}


def test_parameters_never_join_the_graph() -> None:
    leaves = []

    def walk(node: Any) -> None:
        for parent, _ in node.next_functions:
            if parent is not None:
                leaves.append(type(parent).__name__)
                walk(parent)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    net = Net()
    net.net[5].register_forward_hook(lambda m, a, out: walk(out.grad_fn))
    InputCAV(net).attribute(SAMPLES, 0)
    # The only leaf is the one from which the graph begins.
    assert leaves.count("AccumulateGrad") == 1


def test_functional_and_module_forms_give_the_same_map() -> None:
    net = small_net()

    def functional(x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(F.conv2d(x, net[0].weight, net[0].bias))
        x = F.gelu(torch.addmm(net[3].bias, x.flatten(1), net[3].weight.t()))
        return x @ net[5].weight.T + net[5].bias

    ours, delta = InputCAV(functional).attribute(SAMPLES, 1, return_convergence_delta=True)
    assert_same(ours, InputCAV(net).attribute(SAMPLES, 1))
    assert delta.abs().max() < 1e-12


# Rules of one's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [torch.tanh, torch.Tensor.tanh, F.tanh], ids=["torch", "Tensor", "functional"])
def test_a_rule_for_a_torch_function_governs_it_in_every_form(key: Any) -> None:
    net = small_net()
    gradient = LayerCAV(net, "0", rules={key: rules.linear}, normalize=None).attribute(SAMPLES, 0)
    hidden = net[0](SAMPLES)
    at_tanh = LayerCAV(net, "1", normalize=None).attribute(SAMPLES, 0)
    expected = at_tanh / hidden.tanh() * (1 - hidden.tanh() ** 2) * hidden
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-8, atol=1e-10)


def test_a_users_rule_is_a_function_of_the_operation() -> None:
    def stop(operation: rules.Operation) -> torch.Tensor:
        assert operation.name == "sigmoid"
        return operation.value().detach()

    x = torch.randn(2, 3, dtype=torch.float64)
    found = InputCAV(lambda x: (x + torch.sigmoid(x)).sum(1), rules={torch.sigmoid: stop}, normalize=None).attribute(x)
    assert_same(found, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": {torch.relu: "x"}}, "the rule of .*relu.* is a str; expected a rule as rules.GammaRule"),
        ({"call": "x"}, r"call is 'x' \(str\); expected 0 for the first call"),
        ({"call": True}, r"call is True \(bool\)"),
    ],
    ids=without_address,
)
def test_options_of_a_wrong_type_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CAVTypeError, match=message):
        LayerCAV(small_net(), "1", **options)


def test_the_delta_cannot_be_computed_afterwards() -> None:
    with pytest.raises(NotImplementedError, match="return_convergence_delta=True") as caught:
        LayerCAV(small_net(), "1").compute_convergence_delta(SAMPLES, SAMPLES, SAMPLES)
    assert isinstance(caught.value, CAVError)


@pytest.mark.parametrize("normalize", ["score", None])
def test_a_score_that_is_not_a_number_is_refused(normalize: Any) -> None:
    with pytest.raises(ModelError, match="the score is not finite in sample 1: NaN or infinity first comes between"):
        InputCAV(lambda x: x.log().sum(1), normalize=normalize).attribute(torch.tensor([[2.0, 3.0], [-1.0, 2.0]]))


def test_what_is_not_finite_but_masked_out_does_no_harm() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x.log(), 0.5 * x).sum(1)

    x = torch.tensor([[2.0, 3.0, -1.0]])
    found, delta = InputCAV(model, normalize=None).attribute(x, return_convergence_delta=True)
    assert_same(found, torch.where(x > 0, x.log(), 0.5 * x))
    assert delta.abs().item() < 1e-6


def test_writing_into_a_carrier_without_a_record_is_refused() -> None:
    def forgetful(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        with torch.no_grad():
            y.clamp_(min=0)
        return y.sum(1)

    with pytest.raises(
        ModelError, match=r"'clamp' writes into a tensor that carries contributions while .* under torch\.no_grad"
    ):
        InputCAV(forgetful).attribute(torch.randn(2, 3))


@pytest.mark.parametrize("on_unknown", ["error", "gradient"])
def test_what_gives_no_numbers_needs_no_rule(on_unknown: str) -> None:
    """Comparisons and arg-max carry nothing; neither is refused nor warned of (a warning is an error here)."""
    x = torch.tensor([[1.0, -2.0, 3.0]])

    def chosen(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0 * x).gather(1, x.argmax(1, keepdim=True))[:, 0]

    ratios = InputCAV(chosen, on_unknown=on_unknown).attribute(x)
    assert_same(ratios, torch.tensor([[0.0, 0.0, 1.0]]))


def test_a_model_that_sets_its_own_parameters_computes_what_it_computes_without() -> None:
    class MaxNorm(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
            return super().forward(x)

    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Identity(), MaxNorm(3, 2, bias=False)), torch.randn(1, 3)
    found = LayerCAV(net, "0", normalize=None).attribute(x, 1)
    assert net[1].weight.norm(dim=1).max() <= 0.1 + 1e-6
    torch.testing.assert_close(found.sum(), net(x)[0, 1].detach())
