"""Methods side by side: the same inputs, one grid, counted cost, and nothing left behind."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam, LayerGradientXActivation, Saliency
from torch import nn

import captum_cav
from captum_cav import LayerCAV, Method, compare, metrics
from captum_cav.comparison import Comparison, Row
from captum_cav.errors import CAVError, InputError, LayerError, MapError, MethodError, ModelError, OptionError
from tests.comparison.networks import classifier, pictures
from tests.support.traces import left_as_it_was

TARGETS = [2, 1, 2]
LAST, MIDDLE = "body.last", "body.relu"


def compared(methods: Any, layers: Any = (LAST,), metrics: Any = (), **options: Any) -> Comparison:
    options = {"progress": False, "repeats": 1, **options}
    model = options.pop("model", None) or classifier()
    return compare(model, pictures(3), TARGETS, methods, layers, metrics, **options)


def rows_of(comparison: Comparison, method: str) -> list[Row]:
    return [row for row in comparison.rows if row.method == method]


def broken(inputs: torch.Tensor, targets: list[int]) -> torch.Tensor:
    raise ArithmeticError("this is\n no method")


def of_three(inputs: torch.Tensor, targets: list[int]) -> torch.Tensor:
    return inputs.abs()


# Maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, -100.0], ids=["scores", "negative scores"])
def test_gradcam_and_cav_agree_before_the_global_average(shift: float) -> None:
    model = classifier()
    model.head.bias.data += shift
    found = compared({"CAV": "cav", "Grad-CAM": Method(LayerGradCam), "published": "gradcam"}, model=model).raw
    cav, cam = found["CAV", LAST], found["Grad-CAM", LAST]
    factors = cav.flatten(1).norm(dim=1) / cam.flatten(1).norm(dim=1)
    torch.testing.assert_close(cav, cam * factors[:, None, None])
    torch.testing.assert_close(cav.relu(), found["published", LAST] * factors[:, None, None])


def test_maps_are_on_one_grid_with_the_sums_they_had() -> None:
    found = compared(["cav", "occlusion", "saliency"], [LAST, MIDDLE, "input"])
    assert found.raw["cav", LAST].shape == (3, 5, 5)
    assert found.raw["cav", MIDDLE].shape == (3, 14, 14)
    for place, maps in found.maps.items():
        assert maps.shape == (3, 14, 14)
        torch.testing.assert_close(maps.sum((1, 2)), found.raw[place].sum((1, 2)).to(maps.dtype))
    small = compared(["cav"], size=(4, 3)).maps["cav", LAST]
    torch.testing.assert_close(small, captum_cav.visualization.resize_map(found.raw["cav", LAST], (4, 3)))


def test_each_map_is_the_methods_own() -> None:
    model = classifier()
    found = compared({"mine": LayerCAV, "GxA": LayerGradientXActivation}, [MIDDLE], model=model, batch_size=2)
    expected = LayerCAV(model, MIDDLE, normalize="abs").attribute(pictures(3), TARGETS).sum(1)
    torch.testing.assert_close(found.raw["mine", MIDDLE], expected)
    scores = model(pictures(3))[range(3), TARGETS].detach()
    assert [row.score for row in rows_of(found, "mine")] == scores.tolist()
    assert [row.target for row in rows_of(found, "mine")] == TARGETS
    torch.testing.assert_close(found.raw["GxA", MIDDLE], expected * scores.abs()[:, None, None])


def test_a_layer_is_a_name_a_module_or_the_methods_own() -> None:
    model = classifier()
    by_module = compared(["cav"], [model.body.last], model=model)  # type: ignore[union-attr]
    own = compared({"cav": Method(LayerCAV, layer=LAST), "cam": "gradcam"}, [MIDDLE], model=model)
    torch.testing.assert_close(own.raw["cav", LAST], by_module.raw["cav", LAST])
    assert [place for place in own.raw if place[0] not in ("random", "uniform")] == [("cav", LAST), ("cam", MIDDLE)]


def test_a_function_gets_inputs_and_targets_and_may_write_into_them() -> None:
    seen: list[Any] = []

    def mine(inputs: torch.Tensor, targets: list[int]) -> torch.Tensor:
        seen.append((inputs.clone(), list(targets)))
        return inputs.mul_(2).sum(1)

    found = compared({"mine": mine, "attributions": of_three}, batch_size=2)
    assert [targets for _, targets in seen[:2]] == [TARGETS[:2], TARGETS[2:]]
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in seen[:2]]), pictures(3))
    torch.testing.assert_close(found.raw["mine", "input"], 2 * pictures(3).sum(1))
    torch.testing.assert_close(found.raw["attributions", "input"], pictures(3).abs().sum(1))


def test_two_controls_stand_at_every_layer() -> None:
    found = compared(["cav", "saliency"], [LAST, MIDDLE])
    for control in ("random", "uniform"):
        assert [place[1] for place in found.raw if place[0] == control] == [LAST, MIDDLE, "input"]
        assert found.raw[control, LAST].shape == (3, 5, 5)
    assert bool((found.raw["uniform", LAST] == 1).all())
    random = found.raw["random", MIDDLE]
    assert abs(float(random.mean())) < 0.2
    assert not torch.equal(random[0], random[1])
    assert torch.equal(random, compared(["cav"], [MIDDLE]).raw["random", MIDDLE])
    assert not torch.equal(random, compared(["cav"], [MIDDLE], seed=1).raw["random", MIDDLE])
    assert {place[0] for place in compared(["cav", "random"]).raw} == {"cav", "random", "uniform"}


def test_random_methods_do_not_depend_on_their_place() -> None:
    alone = compared(["gradient_shap"]).raw["gradient_shap", "input"]
    later = compared(["saliency", "gradient_shap"]).raw["gradient_shap", "input"]
    assert torch.equal(alone, later)


def test_targets_may_be_left_out_where_there_is_one_score() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = classifier()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)[:, 1]

    methods = ["cav", "deeplift"]
    found = compare(One().eval(), pictures(), methods=methods, layers=["net.body"], metrics=(), progress=False)
    assert [row.target for row in found.rows] == [None] * len(found.rows)
    expected = compare(classifier(), pictures(), 1, methods, ["body"], (), progress=False)
    torch.testing.assert_close(found.raw["cav", "net.body"], expected.raw["cav", "body"])
    torch.testing.assert_close(found.raw["deeplift", "input"], expected.raw["deeplift", "input"])


# Cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 8])
def test_passes_are_counted_for_each_example(batch_size: int) -> None:
    expected = {
        "cav": (1, 1),
        "cav:pinpoint": (1, 1),
        "gradcam": (1, 1),
        "layer_gradient_x_activation": (1, 1),
        "saliency": (1, 1),
        "layer_lrp": (2, 1),
        "deeplift": (2, 2),  # the baseline is one more
        "guided_gradcam": (2, 2),
        "integrated_gradients": (50, 50),
        "gradient_shap": (20, 20),
        "occlusion": (170, 0),  # 13 x 13 windows and none
        "random": (0, 0),
    }
    found = compared([name for name in expected if name != "random"], batch_size=batch_size)
    counted = {name: (rows_of(found, name)[0].forwards, rows_of(found, name)[0].backwards) for name in expected}
    assert counted == expected
    assert all(row.seconds is not None and row.seconds >= 0 and row.peak_bytes is None for row in found.rows)


def test_a_functions_passes_are_counted_on_the_users_model() -> None:
    model = classifier()

    def mine(inputs: torch.Tensor, targets: list[int]) -> torch.Tensor:
        return Saliency(model).attribute(inputs.requires_grad_(), target=targets)

    (row, *_) = rows_of(compared({"mine": mine}, model=model), "mine")
    assert (row.forwards, row.backwards) == (1, 1)


# Measures --------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_package() -> None:
    model = classifier()
    masks = pictures(3)[:, 0] > 0
    chosen = ("deletion", "single_deletion", "mass_accuracy", "pointing_hit", "sparseness", "random_logit")
    found = compared(["cav"], metrics=chosen, masks=masks, model=model)
    maps = found.raw["cav", LAST]

    def explain(model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
        return LayerCAV(model, LAST, normalize="abs").attribute(inputs, target).sum(1)

    expected = {
        "deletion": metrics.deletion(model, pictures(3), maps, TARGETS),
        "single_deletion": metrics.single_deletion(model, pictures(3), maps, TARGETS),
        "mass_accuracy": metrics.mass_accuracy(maps, masks),
        "pointing_hit": metrics.pointing_hit(maps, masks),
        "sparseness": metrics.sparseness(found.maps["cav", LAST]),
        "random_logit": metrics.random_logit(model, pictures(3), maps, TARGETS, explain),
    }
    for name, values in expected.items():
        measured = torch.tensor([row.metrics[name] for row in rows_of(found, "cav")], dtype=torch.float64)
        torch.testing.assert_close(measured, values.double(), msg=lambda text, name=name: f"{name}: {text}")


def test_options_of_metrics() -> None:
    steps = compared(["cav"], metrics={"deletion": {"steps": 3, "output": "score"}})
    expected = metrics.deletion(
        classifier(), pictures(3), steps.raw["cav", LAST], TARGETS, steps=3, output="score"
    ).tolist()
    assert [row.metrics["deletion"] for row in rows_of(steps, "cav")] == pytest.approx(expected)


def test_on_a_users_grid_metrics_are_those_of_its_maps() -> None:
    found = compared(["cav"], [MIDDLE], metrics=["deletion"], size=(4, 4))
    expected = metrics.deletion(classifier(), pictures(3), found.maps["cav", MIDDLE], TARGETS).tolist()
    assert [row.metrics["deletion"] for row in rows_of(found, "cav")] == pytest.approx(expected)


def test_completeness_does_not_depend_on_the_unit() -> None:
    found = compared(["cav", "layer_gradient_x_activation", "saliency"], metrics=["completeness"])
    cav, other, unsigned, control = (
        [row.metrics["completeness"] for row in rows_of(found, name)]
        for name in ("cav", "layer_gradient_x_activation", "saliency", "random")
    )
    assert cav == pytest.approx(other, rel=1e-5)
    assert all(math.isnan(value) for value in (*unsigned, *control)), "of what has no unit there is nothing to say"


def test_agreement_is_with_the_first_method() -> None:
    found = compared(["cav", "layer_gradient_x_activation", "input_x_gradient"], metrics=["agreement"])
    assert [row.metrics["agreement"] for row in rows_of(found, "layer_gradient_x_activation")] == pytest.approx([1] * 3)
    expected = metrics.agreement(found.maps["input_x_gradient", "input"], found.maps["cav", LAST]).tolist()
    assert [row.metrics["agreement"] for row in rows_of(found, "input_x_gradient")] == pytest.approx(expected)
    pairs = found.agreement()
    assert pairs[("cav", LAST), ("layer_gradient_x_activation", LAST)] == pytest.approx(1)
    assert pairs[("cav", LAST), ("input_x_gradient", "input")] == pytest.approx(float(np.mean(expected)))
    assert found.agreement(1)[("cav", LAST), ("input_x_gradient", "input")] == pytest.approx(expected[1])


def test_a_function_has_no_value_of_model_randomisation() -> None:
    found = compared({"mine": of_three, "cav": "cav"}, metrics=["model_randomisation"])
    assert all(math.isnan(row.metrics["model_randomisation"]) for row in rows_of(found, "mine"))
    assert all(0 <= row.metrics["model_randomisation"] <= 1 for row in rows_of(found, "cav"))


def test_difull_lays_the_layer_out() -> None:
    model = classifier()
    inputs = pictures(4)
    found = compare(model, inputs, [0, 1, 2, 1], ["cav", "gradcam"], [MIDDLE], ["difull"], progress=False, repeats=1)
    assert [row.metrics["difull"] for row in rows_of(found, "cav")] == pytest.approx([1] * 4)
    assert all(row.metrics["difull"] < 1 for row in rows_of(found, "gradcam"))


# What fails ------------------------------------------------------------------------------------------------------


def test_a_failing_method_is_named() -> None:
    model = classifier()
    with left_as_it_was(model), pytest.raises(MethodError, match="the method 'mine' failed at layer 'input'") as caught:
        compared({"cav": "cav", "mine": broken}, model=model)
    assert isinstance(caught.value, CAVError)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert "ArithmeticError: this is no method" in str(caught.value)


def test_a_failing_method_is_recorded_and_the_others_finish() -> None:
    model = classifier(nn.GELU)
    with left_as_it_was(model):
        found = compared(["cav", "deeplift", "lrp", "gradcam"], metrics=["sparseness"], on_error="record", model=model)
    assert {row.method: row.error and row.error.partition(":")[0] for row in found.rows} == {
        "cav": None,
        "deeplift": "UnsupportedOperationError",
        "lrp": "TypeError",
        "gradcam": None,
        "random": None,
        "uniform": None,
    }
    (row, *_) = rows_of(found, "deeplift")
    assert (row.native_shape, row.seconds, row.forwards) == (None, None, None)
    assert math.isnan(row.metrics["sparseness"])
    with pytest.raises(MapError, match=r"^'deeplift' has no map at 'input': UnsupportedOperationError: .* at gelu in"):
        found.maps["deeplift", "input"]
    with pytest.raises(
        KeyError, match=r"^no map of 'cav' at 'body.lats' was asked for \(did you mean 'cav at body.last'"
    ):
        found.raw["cav", "body.lats"]
    assert found.maps.get(("deeplift", "input")) is None
    assert ("deeplift", "input") not in found.maps


def test_a_reason_shared_by_several_layers_is_printed_once() -> None:
    found = compared(["layer_lrp"], [LAST, MIDDLE], on_error="record", model=classifier(nn.GELU))
    assert str(found).count("TypeError") == 1
    assert f"layer_lrp at {LAST}, {MIDDLE}: TypeError: Module of type" in str(found)


def test_a_failing_metric_is_named_or_recorded() -> None:
    with pytest.raises(MethodError, match=r"metric 'focus' of 'cav' failed at layer 'body\.last': InputError"):
        compared(["cav"], metrics=["focus"])
    found = compared(["cav"], metrics=["focus", "sparseness"], on_error="record")
    (row, *_) = rows_of(found, "cav")
    assert row.error is not None
    assert row.error.startswith("metric 'focus': InputError")
    assert math.isnan(row.metrics["focus"])
    assert row.metrics["sparseness"] > 0
    assert found.raw["cav", LAST].shape == (3, 5, 5), "the map is there"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda inputs, targets: None, "the function returned a NoneType"),
        (lambda inputs, targets: inputs[:1], r"returned shape \(1, 2, 14, 14\) for 3 examples"),
        (lambda inputs, targets: inputs.sum((1, 2, 3)), r"returned shape \(3,\) for 3 examples"),
        (lambda inputs, targets: inputs.sum(1) / 0, "NaN or infinity"),
    ],
)
def test_what_a_function_returns_is_checked(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        compared({"mine": function})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"methods": []}, OptionError, "methods is empty"),
        ({"methods": "cav"}, TypeError, "methods is a str; expected a mapping from names to methods or a list"),
        ({"methods": [LayerCAV]}, TypeError, "a method that is not a short name needs a name"),
        ({"methods": ["gradcan"]}, OptionError, r"unknown method 'gradcan' \(did you mean 'gradcam'"),
        ({"methods": {"mine": 3}}, TypeError, "a method is a int"),
        ({"methods": {"random": "cav"}}, OptionError, "the name 'random' belongs to a control"),
        ({"layers": ["body.lats"]}, LayerError, r"unknown layer 'body.lats' \(did you mean 'body.last'"),
        ({"layers": []}, OptionError, "method 'cav' explains a layer and was told none"),
        ({"metrics": ["deletoin"]}, OptionError, r"unknown metric 'deletoin' \(did you mean 'deletion'"),
        ({"metrics": {"deletion": {"step": 3}}}, OptionError, "metric 'deletion' has no option 'step'; it has steps"),
        (
            {"metrics": ["pointing_hit"]},
            OptionError,
            r"'pointing_hit' needs to know where the objects are; pass masks=",
        ),
        ({"masks": torch.ones(3, 4, 4, dtype=torch.bool)}, InputError, r"masks have shape \(3, 4, 4\); expected"),
        ({"size": (0, 3)}, OptionError, r'size is \(0, 3\); expected "input" or \(height, width\)'),
        ({"repeats": 0}, OptionError, "repeats is 0; expected an integer of at least 1"),
        ({"batch_size": 0.5}, OptionError, "batch_size is 0.5"),
        ({"on_error": "ignore"}, OptionError, 'on_error is \'ignore\'; expected "raise" or "record"'),
        ({"target": [0, 1, 7]}, CAVError, "out of range"),
        ({"inputs": torch.zeros(14)}, InputError, r"expected floating-point pictures of shape \(N, C"),
        ({"inputs": torch.zeros(3, 2, 14, 14) / 0}, InputError, "NaN"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    model = classifier()
    arguments = {"inputs": pictures(3), "target": TARGETS, "methods": ["cav"], "layers": [LAST], "metrics": []}
    with left_as_it_was(model), pytest.raises(error, match=message) as caught:
        compare(model, **{**arguments, **change}, progress=False)
    assert isinstance(caught.value, CAVError)


def test_only_modules_in_evaluation_mode_are_compared() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        compare(lambda x: x, pictures(), 0, ["cav"])  # type: ignore[arg-type]
    model = nn.Sequential(classifier(), nn.Dropout()).train()
    with left_as_it_was(model), pytest.raises(ModelError, match="training mode"):
        compare(model, pictures(), 0, ["saliency"], progress=False)


def test_nothing_is_left_behind() -> None:
    model = classifier()
    inputs = pictures(3)
    state = np.random.get_state()
    methods = ["cav", "gradient_shap", "deeplift", "layer_lrp", "guided_gradcam", "gradcam"]
    with left_as_it_was(model, inputs):
        compare(model, inputs, TARGETS, methods, [LAST], ["deletion", "random_logit"], progress=False, repeats=1)
    assert all(np.array_equal(one, other) for one, other in zip(state, np.random.get_state(), strict=True))


def test_progress_is_shown_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    compared({"cav": "cav", "IG": Method(IntegratedGradients, n_steps=2)})
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "efficientnet_lite0"])
def test_every_method_runs_on_real_networks_or_says_why_not(name: str) -> None:
    from captum_cav import zoo
    from captum_cav.comparison import NAMES

    network = zoo.load(name)
    inputs = network.preprocess(zoo.demo_picture())[None]
    with left_as_it_was(network.model, inputs):
        found = compare(
            network.model, inputs, [281], list(NAMES), [network.depths[0], network.depths[2], "input"], (),
            on_error="record", repeats=1, progress=False,
        )  # fmt: skip
    failed = {row.method: row.error or "" for row in found.rows if row.error}
    if name == "squeezenet1_1":
        assert failed == {}
    else:
        assert set(failed) == {"lrp", "layer_lrp"}
        assert all(re.search(r"would be wrong at add in blocks\.2", reason) for reason in failed.values())
    layers = (network.depths[0], network.depths[2], "input")
    cav, cam = found.raw["cav", layers[0]], found.raw["gradcam", layers[0]]
    torch.testing.assert_close(cav.relu() / cav.relu().sum(), cam / cam.sum(), rtol=1e-3, atol=1e-6)
