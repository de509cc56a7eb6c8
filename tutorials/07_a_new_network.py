# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 7. A network of your own
#
# What to do with a network that nobody has explained before: check it with `verify`, see what was done with
# `explain_rules`, deal with operations that have no rule and with scores below 0, and find the way out of every error.
#
# The network here is trained in this notebook, in a few seconds, and it is not a tidy one: operations are called as
# functions, blocks branch and join, and a gate multiplies.

# %%
# %matplotlib inline
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, rules, verify
from captum_cav.errors import CAVError, SignWarning
from captum_cav.visualization import Panel, show_classes, show_rows

# %% [markdown]
# ## A network, and what it learns
#
# A noisy picture holds a circle, a square, both or neither. The network has one output for each.

# %%
SIZE = 32
CLASSES = ["circle", "square"]


def draw(has_circle: bool, has_square: bool) -> torch.Tensor:
    """A picture of shape (1, 32, 32); where there are both shapes, each has a half of it."""
    picture = 0.15 * torch.randn(1, SIZE, SIZE)
    places = torch.arange(SIZE)
    left = bool(torch.rand(()) < 0.5)
    for is_circle in [True] * has_circle + [False] * has_square:
        radius = int(torch.randint(4, 7, ()))
        middle_y = int(torch.randint(radius + 1, SIZE - radius - 1, ()))
        middle_x = int(torch.randint(radius + 1, SIZE // 2 - radius + 1, ())) + SIZE // 2 * (left != is_circle) - 1
        y, x = (places - middle_y).abs()[:, None], (places - middle_x).abs()
        picture[0] += (y**2 + x**2 <= radius**2 if is_circle else torch.maximum(y, x) < radius).float()
    return picture


class Shapes(nn.Module):
    """Scores (N, 2) of pictures (N, 1, 32, 32): is there a circle, is there a square?"""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.GroupNorm(3, 12)
        self.conv = nn.Conv2d(12, 12, 3, padding=1)
        self.gate = nn.Linear(12, 12)
        self.last = nn.Conv2d(12, 24, 3, padding=1)
        self.head = nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.silu(self.norm(self.stem(x))), 2)
        y = F.gelu(self.conv(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        x = F.relu(self.last(F.max_pool2d(x + y, 2)))
        return self.head(x.amax((2, 3)))


torch.set_num_threads(1)  # for so small a network threads would wait for each other
torch.manual_seed(0)
net = Shapes()
optimizer = torch.optim.Adam(net.parameters(), 5e-3)
for _ in range(150):
    present = torch.rand(32, 2) < 0.5
    pictures = torch.stack([draw(*pair) for pair in present.tolist()])
    loss = F.binary_cross_entropy_with_logits(net(pictures), present.float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
net.eval()

present = torch.rand(500, 2) < 0.5
pictures = torch.stack([draw(*pair) for pair in present.tolist()])
accuracy = ((net(pictures) > 0) == present).float().mean().item()
print(f"right about {accuracy:.1%} of new pictures")

# %% [markdown]
# ## First of all: `verify`
#
# It runs the model once, compares for every operation what its output contributed with what its inputs and constants
# did, and names what does not add up or has no rule.

# %%
both = torch.stack([draw(True, True)])
verified = verify(net, both, target=0)
print(verified)

# %% [markdown]
# *ok*: every operation has a rule and conserves, the output is what it is without `captum_cav`, and next to nothing of
# the score is unexplained. "Absolute contributions" says how much cancels: 1 if nothing lowers the score.
#
# ## Then: what was done?
#
# The last column tells what was held constant. A gate is a weight: it says *how much* passes, and what it multiplies
# carries the contribution. A group norm's divisor is a constant as well.

# %%
print(LayerCAV(net, "stem").explain_rules(both))

# %% [markdown]
# ## Then look
#
# Layers are given by their names, `net.named_modules()` has them all; or as modules.

# %% tags=["picture"]
layers = ["last", "conv", "stem"]
cav = LayerCAV(net, layers, normalize="abs")
scores = net(both).detach()[0].tolist()
labels = [f"{name} ({score:.1f})" for name, score in zip(CLASSES, scores)]
maps = cav.attribute_targets(both, [0, 1])
show_classes(both[0, 0].clamp(0, 1), maps, labels, layers, signed=True)[0]

# %% [markdown]
# So that is what it learned: a *circle* is a slanting edge, a *square* a level one, and each speaks against the other.
#
# ## Negative scores
#
# Below is a circle alone. The score of *square* is negative: the network says *no*. The paper's ratios are shares of the
# score, `x c / p`, and dividing by a negative `p` turns all signs round: red is then what made the score *more negative*.
# `normalize="abs"` divides by `|p|`, so that red always raised the score and blue lowered it. Take that for pictures.

# %%
circle = torch.stack([draw(True, False)])
square_score = net(circle)[0, 1].item()
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SignWarning)  # which says what is said above
    by_score = LayerCAV(net, "conv", normalize="score").attribute(circle, target=1)
by_size = LayerCAV(net, "conv", normalize="abs").attribute(circle, target=1)

figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
figure.suptitle(f"square: score {square_score:.1f}")
for axis, panel in zip(
    axes,
    (
        Panel('"score", the default', by_score.sum(1)[0], signed=True, ends=("ratio\nbelow 0", "ratio\nabove 0")),
        Panel('"abs"', by_size.sum(1)[0], signed=True),
    ),
):
    show_rows(circle[0, 0].clamp(0, 1), [("", [panel])], axes=(figure, axis))

# %% [markdown]
# Near a score of 0 shares mean nothing, for whatever is divided by 0 is large. You are warned, and `normalize=None` still
# gives the contributions themselves, in units of the score:

# %%
difference = nn.Linear(2, 1, bias=False)
difference.weight.data.copy_(torch.tensor([[1.0, -1.0]]))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    InputCAV(difference).attribute(torch.ones(1, 2))
print(caught[0].category.__name__, "-", caught[0].message)
cancelling = InputCAV(difference, normalize=None).attribute(torch.ones(1, 2))
print("contributions", cancelling.tolist())

# %% [markdown]
# If *all* scores are far below 0, or far above, ask another question: `LayerCAV(..., score="log_odds")` explains a class
# against all others, and `show_difference` one class against another (tutorial 2).
#
# ## An operation without a rule
#
# It is never skipped in silence. Here somebody put a Bessel function into a network:


# %%
class Odd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i1(x)


def attempt(what: Callable[[], Any]) -> str:
    """Print and return the error that something raises."""
    try:
        what()
    except CAVError as error:
        print(f"{type(error).__name__}: {error}")
        return str(error)
    return ""


torch.manual_seed(0)
bent = nn.Sequential(nn.Linear(3, 4), Odd(), nn.Linear(4, 2)).eval()
x = 2 * torch.randn(2, 3)
unknown = attempt(lambda: LayerCAV(bent, "0").attribute(x, target=1))

# %% [markdown]
# `verify` goes on instead, so that all such operations of a model come up at once:

# %%
print(verify(bent, x, target=1))

# %% [markdown]
# The message has the cure. Each output of `i1` comes from one input alone, and `i1(0)` is 0, so that its value over its
# input says how much of it passed: `rules.pass_through` is right, and `verify` agrees. (Tutorial 4 has a function for
# which that is not enough, and writes its rule.)

# %%
ruled = verify(bent, x, target=1, rules={torch.special.i1: rules.pass_through})
print(ruled)

# %% [markdown]
# `on_unknown="gradient"` passes the plain gradient on, with a warning. What that loses is in the delta:

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    _, lost = LayerCAV(bent, "0", on_unknown="gradient").attribute(x, target=1, return_convergence_delta=True)
print(caught[0].category.__name__, "-", caught[0].message)
print("unexplained shares of the two scores:", [round(value, 3) for value in lost.tolist()])

# %% [markdown]
# ## A kernel of your own
#
# What runs outside torch cannot be seen into. Give its *module* a rule, and the whole call counts as one operation:


# %%
class Kernel(torch.autograd.Function):
    """A softsign, computed by numpy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        values = x.detach().numpy()
        return torch.from_numpy(values / (1 + np.abs(values)))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Softsign(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Kernel.apply(x)


foreign = nn.Sequential(nn.Linear(3, 4), Softsign(), nn.Linear(4, 2)).eval()
unseen = attempt(lambda: verify(foreign, x, target=1))

# %%
as_one = {Softsign: rules.PassThroughRule()}
print(verify(foreign, x, target=1, rules=as_one))
in_torch = nn.Sequential(foreign[0], nn.Softsign(), foreign[2])
by_kernel = LayerCAV(foreign, "0", rules=as_one).attribute(x, target=1)
print("as torch's own softsign:", torch.allclose(by_kernel, LayerCAV(in_torch, "0").attribute(x, target=1)))

# %% [markdown]
# ## Troubleshooting
#
# Errors say what was given, what was expected and what to do. All are a `CAVError` and the built-in error that you would
# expect, so `except ValueError` works too. The most frequent ones are met here; all of them are in
# [docs/troubleshooting.md](../docs/troubleshooting.md).
#
# First, **the model**:

# %%
messages = [
    attempt(lambda: LayerCAV(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), "0").attribute(x, target=1)),
    attempt(lambda: InputCAV(lambda x: {"logits": net(x)}).attribute(both, target=1)),
    attempt(lambda: InputCAV(lambda x: bent(x.detach()), normalize="abs").attribute(x, target=1)),
    attempt(lambda: InputCAV(lambda x: bent[0](x / 0.0)).attribute(x, target=1)),
]
with torch.inference_mode():
    messages.append(attempt(lambda: InputCAV(net).attribute(both, target=1)))

# %% [markdown]
# | the text speaks of | cause | what to do |
# |---|---|---|
# | training mode | dropout is on, or a batch norm would take the batch's statistics | `model.eval()` |
# | returned a dict | the scores are inside something else | `output="logits"`, the name of the part with the scores |
# | does not depend on | `detach()`, `torch.no_grad()`, or only a gate depends on it | pick a layer behind that |
# | NaN or infinity first comes | the model computes such numbers | look at the module that is named |
# | inference_mode | torch records no graph there | leave it; `torch.no_grad()` is fine |
# | scripted or traced | its operations cannot be seen | the eager model that it was made from |
#
# **The layer**:


# %%
class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(torch.tanh(self.shared(x)))


twice = Twice().eval()
messages += [
    attempt(lambda: LayerCAV(net, "stemm")),
    attempt(lambda: LayerCAV(net, Shapes().stem)),
    attempt(lambda: LayerCAV(lambda x: net(x), "stem")),
    attempt(lambda: LayerCAV(twice, "shared").attribute(x, target=0)),
    attempt(lambda: LayerCAV(twice, "unused").attribute(x, target=0)),
]

# %% [markdown]
# | the text speaks of | what to do |
# |---|---|
# | unknown layer | take the near match that it names, or look in `model.named_modules()` |
# | does not belong to this model | take the module from the same object that you pass |
# | is a name, but forward_func is not a module | pass the module itself as the layer |
# | was reached 2 times | say which call is meant: `call=0`, or `-1` for the last |
# | was not reached | the input takes another path through the model |
#
# **The target and the inputs**:

# %%
messages += [
    attempt(lambda: InputCAV(net).attribute(both)),
    attempt(lambda: InputCAV(net).attribute(both, target=2)),
    attempt(lambda: InputCAV(net).attribute(both, target=[0, 1])),
    attempt(lambda: InputCAV(net).attribute(both / 0, target=0)),
    attempt(lambda: InputCAV(lambda ids: nn.Embedding(5, 3)(ids + 1)).attribute(torch.tensor([1]), target=0)),
]

# %% [markdown]
# | the text speaks of | what to do |
# |---|---|
# | target is missing / out of range | one index for each dimension behind the batch |
# | target lists | one entry for each sample; or `attribute_targets` for several classes of the same samples |
# | inputs holds NaN or infinity | clean the samples that it names |
# | no embedding layer takes them as they are | explain the layer that takes the integers: `LayerCAV(model, "embedding")`, `verify(..., layer="embedding")` |
#
# **The rules**:

# %%
messages += [
    attempt(lambda: LayerCAV(net, "stem", rules="gama")),
    attempt(lambda: LayerCAV(net, "stem", rules={"features.*": rules.GammaRule()})),
    attempt(lambda: LayerCAV(net, "stem", rules={nn.Conv2d: rules.GammaRule})),
    attempt(lambda: LayerCAV(net, "stem", rules={torch.relu: rules.GammaRule()})),
]

# %% [markdown]
# | the text speaks of | what to do |
# |---|---|
# | unknown preset | take the near match, or one of the list |
# | matches no module | a pattern that fits nothing would change nothing; correct it |
# | is the class | make the rule: `rules.GammaRule()` |
# | is not for | that rule shares out sums; give an activation one of its own, see tutorial 4 |
#
# Checks:

# %%
assert accuracy > 0.98
assert verified.ok
assert all(ratios.sum() > 0 for of_class in maps for ratios in of_class), "both scores are above 0"
torch.testing.assert_close(by_score, -by_size)
assert square_score < 0
assert cancelling.tolist() == [[1.0, -1.0]]
assert "special_i1" in unknown
assert ruled.ok
assert lost.abs().max() > 0.1
assert "custom autograd.Function" in unseen
torch.testing.assert_close(by_kernel, LayerCAV(in_torch, "0").attribute(x, target=1))
assert all(messages), "each of them raises"
