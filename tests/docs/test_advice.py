"""What a message advises works: for each message that says what to do, the trouble and the advice.

Many of these are on the page ``docs/troubleshooting.md``, whose examples run in ``test_troubleshooting.py``: first what
raises, then what the message says. All others are here, or are named with the reason why nobody can try them here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import captum_cav
from captum_cav import InputCAV, LayerCAV, Method, NeuronCAV, ablation, metrics, presets, rules, visualization
from captum_cav.errors import CAVError
from tests.docs.test_troubleshooting import ENTRIES, Entry, messages, says
from tests.support.errors import no_warnings

X = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
PICTURES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
CONV = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
QUICK: dict[str, Any] = {"metrics": [], "repeats": 1, "progress": False}


class Two(nn.Module):
    """Gives two tensors."""

    def __init__(self, second: Callable[[torch.Tensor], torch.Tensor] = torch.tanh) -> None:
        super().__init__()
        self.conv, self.second = nn.Conv2d(3, 4, 3), second

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.conv(x)
        return h, self.second(h)


class Around(nn.Module):
    """A layer, and what is made of its output."""

    def __init__(self, layer: nn.Module, after: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.after, self.head = layer, after, nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.after(self.layer(x)))


def pooled(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (pair[0] + pair[1]).mean((2, 3))


TWO = Around(Two(), pooled).eval()


class Applied(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class ByKeyword(nn.Module):
    def __init__(self, by_keyword: bool) -> None:
        super().__init__()
        self.inner, self.by_keyword = Applied(lambda x: x), by_keyword

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x=x) if self.by_keyword else self.inner(x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.relu(self.conv(x)) - 0.1).mean((2, 3)))


class NoRule(rules.Rule):
    pass


class WithRule(NoRule):
    def __call__(self, operation: rules.Operation, /) -> Any:
        return operation.value()


class NoShares(rules.AffineRule):
    pass


class WithShares(NoShares):
    def shares(self, summands: rules.Summands) -> list[rules.Share]:
        return [rules.Share(None, rules.inverse_of(summands.total))]


def squares(x: torch.Tensor) -> torch.Tensor:
    """Takes a derivative inside."""
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad((leaf**2).sum(), leaf)
    return gradient * x


def silent(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x.clamp_(max=0.5)
    return x


def into(shape: tuple[int, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.add(x, 1, out=torch.empty(shape))


class Kernel(torch.autograd.Function):
    """Computes out of sight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


def kernel_of(function: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Applied(function), nn.Linear(4, 3))


def perturbed(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    noise = 0.1 * torch.ones_like(inputs)
    return noise, inputs - noise


def infidelity(attributions: Any, **layer: Any) -> torch.Tensor:
    return metrics.infidelity(NET, perturbed, X, attributions, target=0, **layer)


LAYER = LayerCAV(NET, "1", normalize=None)
SPECTRUM = nn.Sequential(nn.Linear(4, 4), Applied(torch.fft.fft), Applied(torch.abs))
SPARSE = nn.Sequential(nn.Linear(4, 4), Applied(lambda h: h.to_sparse()), Applied(lambda h: h.to_dense()))
INDICES = nn.Sequential(nn.Linear(4, 4), Applied(lambda h: h.argmax(1)), nn.Embedding(4, 3))
MASKS = torch.zeros(2, 8, 8, dtype=torch.bool)
MASKS[:, :4] = True

#: A text of the message, what raises it, and what it advises.
ADVICE: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
    (
        "writes into a tensor that carries contributions while the model is under torch.no_grad()",
        lambda: LayerCAV(nn.Sequential(NET[0], Applied(silent), NET[2]), "0").attribute(X, 0),
        lambda: LayerCAV(nn.Sequential(NET[0], Applied(silent), NET[2]), "1").attribute(X, 0),
    ),
    (
        "pass layers=['...']",
        lambda: captum_cav.compare(CONV, PICTURES, 0, ["cav"], **QUICK),
        lambda: captum_cav.compare(CONV, PICTURES, 0, ["cav"], ["1"], **QUICK),
    ),
    (
        "Method(..., layer='...')",
        lambda: captum_cav.compare(CONV, PICTURES, 0, {"cav": Method(LayerCAV)}, **QUICK),
        lambda: captum_cav.compare(CONV, PICTURES, 0, {"cav": Method(LayerCAV, layer="1")}, **QUICK),
    ),
    (
        "pass masks=, (N, H, W) of bool",
        lambda: captum_cav.compare(CONV, PICTURES, 0, ["cav"], ["1"], ["pointing_hit"], repeats=1, progress=False),
        lambda: captum_cav.compare(
            CONV, PICTURES, 0, ["cav"], ["1"], ["pointing_hit"], MASKS, repeats=1, progress=False
        ),
    ),
    (
        'compare with normalize="abs", or None',
        lambda: Method(LayerCAV, normalize="score"),
        lambda: [Method(LayerCAV, normalize="abs"), Method(LayerCAV, normalize=None)],
    ),
    (
        "Use rules.linear where y is linear in its input",
        lambda: InputCAV(lambda x: x.sum(1), rules={torch.sum: rules.pass_through}).attribute(X),
        lambda: InputCAV(lambda x: x.sum(1), rules={torch.sum: rules.linear}).attribute(X),
    ),
    (
        "Use rules.linear where y is linear in its inputs",
        lambda: InputCAV(lambda x: x + x.flip(1), rules={torch.add: rules.pass_through}).attribute(X, 0),
        lambda: InputCAV(lambda x: x + x.flip(1), rules={torch.add: rules.linear}).attribute(X, 0),
    ),
    (
        "or give the module that does it a rule as one operation",
        lambda: InputCAV(kernel_of(lambda x: _overwritten(x)), rules={torch.exp: rules.linear}).attribute(X, 0),
        lambda: InputCAV(kernel_of(lambda x: _overwritten(x)), rules={Applied: rules.PassThroughRule()}).attribute(
            X, 0
        ),
    ),
    (
        "pass the picture as it was before it was normalized",
        lambda: visualization.show_signed(PICTURES[0].permute(1, 2, 0) - 0.5, torch.eye(2)),
        lambda: visualization.show_signed(PICTURES[0].permute(1, 2, 0), torch.eye(2)),
    ),
    (
        "does not say how to pass contributions on: define __call__",
        lambda: InputCAV(NET, rules={"1": NoRule()}).attribute(X, 0),
        lambda: InputCAV(NET, rules={"1": WithRule()}).attribute(X, 0),
    ),
    (
        "does not say how to share: define shares",
        lambda: InputCAV(NET, rules={"0": NoShares()}).attribute(X, 0),
        lambda: InputCAV(NET, rules={"0": WithShares()}).attribute(X, 0),
    ),
    (
        "explains no layer, but layer='1' was given; leave it out",
        lambda: Method(InputCAV, layer="1"),
        lambda: Method(InputCAV),
    ),
    (
        "pick a layer that gives one tensor",
        lambda: ablation.ablate(TWO, PICTURES, "layer", MASKS),
        lambda: ablation.ablate(TWO, PICTURES, "layer.conv", MASKS),
    ),
    (
        "keep the winner-take-all rule there",
        lambda: _pooled_with(rules.UniformPoolingRule()),
        lambda: _pooled_with(rules.WinnerTakeAllRule()),
    ),
    (
        "give the rule for its module's type instead",
        lambda: rules.rule(silent),
        lambda: InputCAV(kernel_of(torch.tanh), rules={Applied: rules.pass_through}).attribute(X, 0),
    ),
    (
        "pass that argument by position",
        lambda: InputCAV(ByKeyword(True), rules={Applied: rules.PassThroughRule()}).attribute(X, 0),
        lambda: InputCAV(ByKeyword(False), rules={Applied: rules.PassThroughRule()}).attribute(X, 0),
    ),
    (
        "or give rules for the operations inside the module",
        lambda: InputCAV(ByKeyword(True), rules={Applied: rules.PassThroughRule()}).attribute(X, 0),
        lambda: InputCAV(ByKeyword(True), rules={Applied: rules.GradientRule()}).attribute(X, 0),
    ),
    (
        "pass a tensor of the result's shape",
        lambda: InputCAV(into((3,))).attribute(X, 0),
        lambda: InputCAV(into((2, 4))).attribute(X, 0),
    ),
    (
        "pass a function of inputs and targets without Method",
        lambda: Method(lambda inputs, target: inputs),  # type: ignore[arg-type]
        lambda: captum_cav.compare(CONV, PICTURES, 0, {"mine": lambda inputs, target: inputs}, **QUICK),
    ),
    (
        "The model takes derivatives in its forward pass",
        lambda: InputCAV(kernel_of(squares)).attribute(X, 0),
        lambda: InputCAV(kernel_of(squares), rules={Applied: rules.PassThroughRule()}).attribute(X, 0),
    ),
    (
        "a custom autograd.Function",
        lambda: InputCAV(kernel_of(Kernel.apply)).attribute(X, 0),
        lambda: [
            InputCAV(kernel_of(Kernel.apply), rules={Applied: rule}).attribute(X, 0)
            for rule in (rules.linear, rules.PassThroughRule())
        ],
    ),
    (
        "captum_cav could not see",
        lambda: InputCAV(kernel_of(_SCRIPTED)).attribute(X, 0),
        lambda: [
            InputCAV(kernel_of(_SCRIPTED), rules={Applied: rule}).attribute(X, 0)
            for rule in (rules.linear, rules.PassThroughRule())
        ],
    ),
    (
        "takes the delta of one layer, not of several",
        lambda: _tunnel(["0", "1"], return_convergence_delta=True),
        lambda: [_tunnel("0", return_convergence_delta=True), _tunnel(["0", "1"])],
    ),
    (
        "Pass layer= and attribute_to_layer_input= as they were for the attributions",
        lambda: infidelity(LAYER.attribute(X, 0)),
        lambda: infidelity(LAYER.attribute(X, 0), layer="1"),
    ),
    (
        "of a pair with a convergence delta, pass the first",
        lambda: infidelity(LAYER.attribute(X, 0, return_convergence_delta=True), layer="1"),
        lambda: infidelity(LAYER.attribute(X, 0, return_convergence_delta=True)[0], layer="1"),
    ),
    (
        "expected 0 for the first call, -1 for the last",
        lambda: LayerCAV(Twice(), "relu", call="first"),  # type: ignore[arg-type]
        lambda: [LayerCAV(Twice(), "relu", call=call).attribute(PICTURES, 0) for call in (0, -1)],
    ),
    (
        "expected None or a list of the one device of the model (cpu)",
        lambda: LayerCAV(NET, "0", device_ids=[0, 1]),
        lambda: [LayerCAV(NET, "0", device_ids=ids) for ids in (None, ["cpu"])],
    ),
    (
        "Pass a function that moves the samples to the first dimension",
        lambda: metrics.sensitivity_max(lambda inputs: inputs.T, X, n_perturb_samples=2),
        lambda: metrics.sensitivity_max(lambda inputs: inputs.T.T, X, n_perturb_samples=2),
    ),
    (
        "pick a layer whose units carry numbers",
        lambda: LayerCAV(INDICES, "1").attribute(X, 0),
        lambda: LayerCAV(INDICES, "2").attribute(X, 0),
    ),
    (
        "pick one that is reached once",
        lambda: captum_cav.compare(Twice(), PICTURES, 0, ["gradcam"], ["relu"], **QUICK),
        lambda: captum_cav.compare(Twice(), PICTURES, 0, ["gradcam"], ["conv"], **QUICK),
    ),
    (
        "leave out the samples that show no object",
        lambda: metrics.pointing_hit(torch.rand(2, 8, 8), MASKS & torch.tensor([True, False])[:, None, None]),
        lambda: metrics.pointing_hit(torch.rand(1, 8, 8), MASKS[:1]),
    ),
    (
        "a method that is not a short name needs a name: use a mapping",
        lambda: captum_cav.compare(CONV, PICTURES, 0, [Method(InputCAV)], **QUICK),  # type: ignore[list-item]
        lambda: captum_cav.compare(CONV, PICTURES, 0, {"mine": Method(InputCAV)}, **QUICK),
    ),
    (
        "belongs to a control, which is always there; choose another",
        lambda: captum_cav.compare(CONV, PICTURES, 0, {"random": Method(InputCAV)}, **QUICK),
        lambda: captum_cav.compare(CONV, PICTURES, 0, {"mine": Method(InputCAV)}, **QUICK),
    ),
    (
        'pass output="score"',
        lambda: metrics.deletion(lambda x: CONV(x)[:, 0], PICTURES, torch.rand(2, 8, 8), None, steps=2),
        lambda: metrics.deletion(lambda x: CONV(x)[:, 0], PICTURES, torch.rand(2, 8, 8), None, steps=2, output="score"),
    ),
    (
        "the delta is no part of the explanation; leave it out",
        lambda: metrics.sensitivity_max(
            LAYER.attribute, X, n_perturb_samples=2, target=0, return_convergence_delta=True
        ),
        lambda: metrics.sensitivity_max(LAYER.attribute, X, n_perturb_samples=2, target=0),
    ),
    (
        "pass a function that selects from them",
        lambda: NeuronCAV(TWO, "layer").attribute(PICTURES, 0),
        lambda: NeuronCAV(TWO, "layer").attribute(PICTURES, lambda pair: pair[1][:, 0, 0, 0]),
    ),
    (
        "a sparse tensor",
        lambda: LayerCAV(SPARSE, "1").attribute(X, 0),
        lambda: [LayerCAV(nn.Sequential(SPARSE[0]), "0").attribute(X, 0), LayerCAV(SPARSE, "2").attribute(X, 0)],
    ),
    (
        "Pick a layer before or behind it",
        lambda: LayerCAV(SPECTRUM, "1").attribute(X, 0),
        lambda: [LayerCAV(SPECTRUM, layer).attribute(X, 0) for layer in ("0", "2")],
    ),
    (
        "pass those of one, as contributions[:1]",
        lambda: visualization.show_signed(torch.zeros(8, 8), PICTURES),
        lambda: visualization.show_signed(torch.zeros(8, 8), PICTURES[:1]),
    ),
    (
        "Pass a function that picks them, as forward_func=lambda x: model(x)[:, 0]",
        lambda: ablation.ablate(lambda x: CONV(x)[:, None], PICTURES, None, MASKS),
        lambda: ablation.ablate(lambda x: CONV(x)[:, None][:, 0], PICTURES, None, MASKS),
    ),
    (
        "pass rules=presets.epsilon_gamma_box(low, high)",
        lambda: InputCAV(NET, rules="epsilon_gamma_box"),
        lambda: InputCAV(NET, rules=presets.epsilon_gamma_box(-1.0, 1.0)).attribute(X, 0),
    ),
    (
        "use float32, bfloat16 or autocast",
        lambda: _flat_in(torch.float16),
        lambda: [_flat_in(torch.float32), _flat_in(torch.bfloat16), _flat_in(None)],
    ),
]


def _overwritten(x: torch.Tensor) -> torch.Tensor:
    y = torch.exp(x)
    z = y * 2
    y += 1
    return z + y


def _pooled_with(rule: rules.Rule) -> Any:
    return InputCAV(lambda x: F.max_pool2d(x, 2, dilation=2).sum((1, 2, 3)), rules={F.max_pool2d: rule}).attribute(
        PICTURES
    )


def _tunnel(layer: Any, **options: Any) -> Any:
    from captum.attr import NoiseTunnel

    return NoiseTunnel(LayerCAV(NET, layer)).attribute(X, target=0, nt_samples=2, **options)


def _flat_in(dtype: torch.dtype | None) -> Any:
    layer = nn.Linear(4, 3)
    cav = InputCAV(layer if dtype is None else layer.to(dtype), rules={nn.Linear: rules.FlatRule()})
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
        return cav.attribute(X if dtype is None else X.to(dtype), 0)


@torch.jit.script
def _SCRIPTED(x: torch.Tensor) -> torch.Tensor:  # noqa: N802 - a function of another kind
    return torch.sin(x) * 2


#: Messages whose advice cannot be tried here, and why.
ELSEWHERE = {
    # Another machine, network or package.
    "--device cuda was asked for": "needs CUDA",
    "move one with .to(device)": "needs two devices; tests/gpu",
    "is a DTensor": "needs several processes",
    "is sharded over several processes": "needs several processes",
    "could not be downloaded": "needs the network; tests/zoo",
    "pip install": "installs packages",
    # Tested where the commands, pages and folders are.
    "--target names": "tests/commands",
    "give a file with --output FILE": "tests/commands",
    "choose another with --output DIR": "tests/commands",
    "has no class ...: give": "tests/commands",
    "the class name is empty": "tests/commands",
    "the class names of": "tests/commands",
    "a contribution is not finite": "tests/test_page.py",
    "pass a folder that Comparison.save() has finished": "tests/comparison",
    # The advice is another message's.
    "takes several layers only if each of them gives one tensor": "as for the delta of several layers",
    "times; call=... is out of range": "as for a layer that was reached several times",
    "pass the float model that": "tests/attribution/test_quantized.py",
    "write it as a rules.Rule": "tests/rules/test_own_rules.py",
    "define it in the class": "tests/metrics/test_grids.py",
    "Look at the numbers there": "says where to look, not what to do",
    "pass ...dequantize() and the float model": "as for quantized layers",
}

_ADVISES = re.compile(
    r"\b([Uu]se|[Pp]ass|[Gg]ive|[Cc]all|[Pp]ick|[Mm]ove|[Cc]hoose|[Ww]rite|[Ll]eave|[Dd]efine|[Ff]etch|take it|load"
    r"|keep|explain a|compare with|run the|pip install|Look)\b"
)


@pytest.mark.filterwarnings("ignore::captum_cav.errors.ScoreWarning")
@pytest.mark.parametrize(("text", "trouble", "advised"), ADVICE, ids=[text[:50] for text, *_ in ADVICE])
def test_what_a_message_advises_works(text: str, trouble: Callable[[], Any], advised: Callable[[], Any]) -> None:
    with pytest.raises(CAVError) as caught:
        trouble()
    assert text.replace("'...'", "").split("(...")[0] in str(caught.value) or _fits(text, str(caught.value))
    assert advised() is not None


def _fits(text: str, said: str) -> bool:
    return re.search(".*".join(map(re.escape, text.split("..."))), said, re.DOTALL) is not None


def _shows_the_way_out(entry: Entry) -> bool:
    """Whether an example of the page goes on, after what raises, with a statement that does not."""
    lines = (entry.example or "").splitlines()
    ends = [str(lines[(statement.end_lineno or 1) - 1]) for statement in ast.parse(entry.example or "").body]
    raising = [end.endswith(("# raises", "# warns")) for end in ends]
    return True in raising and False in raising[raising.index(True) :]


def test_all_advice_is_tried() -> None:
    on_page = [text for entry in ENTRIES if _shows_the_way_out(entry) for text in entry.texts]
    untried = [
        message
        for message in sorted(messages())
        if _ADVISES.search(message)
        and not any(says(message, text) for text in on_page)
        and not any(_fits(text, message) or _fits(message_part(text), message) for text, *_ in ADVICE)
        and not any(text in message for text in ELSEWHERE)
    ]
    assert not untried, "\n".join(["nobody tries what these advise:", *untried])
    idle = [text for text in ELSEWHERE if not any(text in message for message in messages())]
    assert not idle, "\n".join(["nothing says that any more:", *idle])


def message_part(text: str) -> str:
    """A text of :data:`ADVICE` as it stands in the source, where names and numbers are filled in."""
    return re.sub(r"'\d'|\(cpu\)|epsilon_gamma_box\(low, high\)|a sparse tensor$", "...", text)


def test_advice_that_is_followed_warns_of_nothing() -> None:
    text, _, advised = ADVICE[0]
    assert "no_grad" in text
    with no_warnings():
        advised()
