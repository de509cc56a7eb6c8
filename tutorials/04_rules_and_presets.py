# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 4. Rules and presets
#
# A *rule* says how an operation shares out what it contributed. The paper's rules are the default; `rules=` chooses
# others, for one attribution object and without touching the model. Here: how to say which rule is for what, what each
# does to the map, and how to write your own.

# %%
# %matplotlib inline
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, presets, rules, verify, zoo
from captum_cav.errors import UnsupportedOperationError
from captum_cav.visualization import Panel, show_rows, spatial_map

network = zoo.load("efficientnet_lite0")
model, picture = network.model, zoo.demo_picture()
batch, shown = network.preprocess(picture)[None], network.display(picture)
tabby = network.class_index("tabby")

# %% [markdown]
# ## Which rule is where
#
# `explain_rules` lists every operation that ran behind the layer, its rule, and why it has that one. These are the
# defaults: what is linear shares by its summands, activations pass through, pooling averages.

# %%
print(LayerCAV(model, "blocks.14").explain_rules(batch))

# %% [markdown]
# ## Overriding
#
# `rules` maps keys to rules. A key is a module, a qualified name or a pattern of names, a type of module, or a torch
# function, which also governs functional calls. **The most specific wins**: module, then name, then type, then function.
#
# Below, all four speak about convolutions or the classifier; the last column tells which was heard.

# %%
mine = {
    F.conv2d: rules.EpsilonRule(0.1),  # a torch function
    nn.Conv2d: rules.GammaRule(0.25),  # a type of module
    "blocks.*": rules.ZPlusRule(),  # a pattern of names
    "blocks.15.project.conv": rules.GammaRule(1.0),  # an exact name is more specific than a pattern
    model.classifier: rules.EpsilonRule(0.01),  # a module
    nn.ReLU6: rules.PassThroughRule(),
}
table = LayerCAV(model, "blocks.14", rules=mine).explain_rules(batch)
print(table)

# %% [markdown]
# A rule given for a module or a pattern governs the operations that it is *for*, and leaves the others alone: `ZPlusRule`
# shares out what affine operations gave, so the batch norms in `blocks.*` have it and the activations do not.
#
# (A batch norm right behind a convolution is ruled together with it, as one operation.)

# %% [markdown]
# ## Presets
#
# A preset is such a mapping, ready made. Print it; change it with `|`, or give its name.

# %%
print(presets.gamma())
print()
print(presets.gamma(0.5) | {"stem.conv": rules.FlatRule()})
print()
print("presets by name:", ", ".join(presets.NAMES))

# %% [markdown]
# `attnlrp` and `cp_lrp` are for transformers; tutorial 6 uses them.
#
# ## What each does to the map
#
# The same network, picture and class (*tabby*), at three depths, with six sets of rules.

# %%
layers = ["blocks.10", "blocks.4", "blocks.0"]
chosen = {
    "paper": "paper",
    "epsilon": presets.epsilon(0.1),
    "gamma": "gamma",
    "z+": "epsilon_plus",
    "alpha 2 beta 1": "alpha2_beta1",
    "pinpoint": "pinpoint",
}
found = {
    name: LayerCAV(model, layers, rules=of_name, normalize="abs").attribute(batch, tabby)
    for name, of_name in chosen.items()
}
maps = {name: [spatial_map(ratios, (224, 224))[0] for ratios in ratios_of] for name, ratios_of in found.items()}

# %% tags=["picture"]
rows = [
    (layer, [Panel(name, of_layers[depth], signed=True, unit="%") for name, of_layers in maps.items()])
    for depth, layer in enumerate(layers)
]
show_rows(shown, rows, "What raised and lowered tabby; the full colour in % of the score")[0]

# %% [markdown]
# - **paper**: every share is exact, `x w / y`. Where a sum of large terms is small, its shares are huge and of both
#   signs; layer by layer this grows, and near the input it is all one sees.
# - **epsilon**: outputs near 0 pass on less. The same map, calmer.
# - **gamma**: what agrees with an output's sign weighs more, so terms cancel less. Smooth, and hardly any blue.
# - **z+**: only positive terms share. No blue at all.
# - **alpha-beta**: positive and negative terms share apart, two of the ones less one of the others.
# - **pinpoint**: gamma, and in front of the global pooling a rule by which the *absence* of a feature speaks too. Red on
#   the animal that was asked for, blue on the other, at every depth.
#
# With gamma, z+ and alpha-beta the dog's head is red as well, though it lowered the score: what cancels is lost, so they
# show more what the network looks at than what it says.
#
# In numbers: how much raised and lowered the score at `blocks.4`, and how much of what raised it lies in the cat's half.

# %%
in_cat = {}
print(f"{'':16}raised  lowered  of that in the cat's half")
for name, (_, middle, _) in maps.items():
    raised = middle.clamp(min=0)
    in_cat[name] = float(raised[14:].sum() / raised.sum())
    print(f"{name:16}{raised.sum():6.1%} {middle.clamp(max=0).sum():8.1%}  {in_cat[name]:.0%}")

# %% [markdown]
# No rule is right and the others wrong; they answer different questions. With the paper's rules the numbers are shares of
# the score. With `gamma`, `z+` and `pinpoint` the constants take most of it, and a map tells *where* but not *how much*.
#
# And a map that looks better can say less. Is a map about the class, or about the picture? Compare the map of *tabby*
# with that of the other animal, and with that of a class that is not there at all:

# %%
others = ["German shepherd", "school bus"]
likeness = {}
for name in ("paper", "gamma", "pinpoint"):
    cav = LayerCAV(model, "blocks.4", rules=chosen[name], normalize="abs")
    for other, ratios in zip(others, cav.attribute_targets(batch, [network.class_index(one) for one in others])):
        both = torch.stack([maps[name][1].flatten(), spatial_map(ratios, (224, 224)).flatten()])
        likeness[name, other] = torch.corrcoef(both)[0, 1].item()
        print(f"{name:8}  tabby's map and that of {other:15}  correlation {likeness[name, other]:+.2f}")

# %% [markdown]
# `pinpoint` keeps the two animals apart as no other does: what speaks for one speaks against the other. But for the bus
# `gamma` and `pinpoint` draw nearly the map of the cat. Where little speaks for a class, such a map shows what stands out
# in the picture. So look at the score first, and at the paper's rules beside any other.
#
# ## The strength of gamma
#
# From 0, the paper's rule, to large: what lowered the score goes first.

# %%
lowered = []
for gamma in (0.0, 0.05, 0.25, 1.0):
    cav = LayerCAV(model, "blocks.10", rules=presets.gamma(gamma), normalize="abs")
    places = spatial_map(cav.attribute(batch, tabby), (224, 224))
    lowered.append(places.clamp(max=0).sum().item())
    print(f"gamma {gamma:4}: raised {places.clamp(min=0).sum():7.1%}, lowered {lowered[-1]:7.1%}")

# %% [markdown]
# ## The first layer
#
# A pixel of value 0 has no share of `x w`, whatever it shows: 0 is grey here. Rules for the first layer go by what a
# pixel *could* be. They are for that layer alone, so give them by its name.

# %%
first = {
    "gamma everywhere": {},
    "z-box": {"stem.conv": rules.ZBoxRule(low=-1.0, high=1.0)},  # pixels lie between -1 and 1
    "flat": {"stem.conv": rules.FlatRule()},  # all pixels of a window alike
}
panels = []
for name, changes in first.items():
    ratios = InputCAV(model, rules=presets.gamma() | changes, normalize="abs").attribute(batch, tabby)
    panels.append(Panel(name, spatial_map(ratios, (224, 224))[0], signed=True))
show_rows(shown, [("input", panels)])[0]

# %% [markdown]
# ## Your own rule for affine layers
#
# Convolutions and linear layers are sums, and a rule of yours need only say how a sum is shared. This one shares by the
# *size* of the terms: `|x w| / sum |x w|`. `summands.sum(x, w)` is the layer with another input and weight, and
# `in_place_of_x(v)` is a stand-in for the input: what `v` brings is the input's share.


# %%
@dataclass(frozen=True, repr=False)
class SizeRule(rules.AffineRule):
    """Terms share by their size, whatever their sign; the bias is one of them."""

    uses_total = False  # it does not use the sum as it is

    def shares(self, summands: rules.Summands) -> list[rules.Share]:
        sizes = summands.sum(summands.in_place_of_x(summands.x.detach().abs()), summands.weight.abs())
        return [rules.Share(sizes, rules.inverse_of(sizes.detach() + summands.constant.abs()))]


linear = nn.Linear(2, 1, bias=False)
linear.weight.data.copy_(torch.tensor([[2.0, -1.0]]))  # y = 2 - 1
by_size = InputCAV(linear, rules={nn.Linear: SizeRule()}).attribute(torch.ones(1, 2))
print("shares by size", by_size.tolist(), "= 2/3 and 1/3")
print("the paper's   ", InputCAV(linear).attribute(torch.ones(1, 2)).tolist())

# %% [markdown]
# It fits wherever a rule fits. `verify` compares, operation by operation, what came out with what went in, and is what to
# run on any rule of your own:

# %%
checked = verify(model, batch, tabby, rules={nn.Conv2d: SizeRule()})
print(checked)

# %% [markdown]
# ## Your own rule for a new operation
#
# The paper's promise is that the method covers any operation as soon as its rule is defined. Here is one that the tables
# do not know, a Bessel function as an activation:


# %%
class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(x)


torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 4), Bessel(), nn.Linear(4, 2)).eval()
x = torch.randn(2, 3)
try:
    LayerCAV(net, "0").attribute(x, target=1)
except UnsupportedOperationError as error:
    print(error)

# %% [markdown]
# Each output comes from one input alone, so the advice fits: `rules.pass_through`. It is a function that takes the
# operation and returns its value, built so that its *gradient* carries contributions; that is all a rule is.
#
# But think before you believe: `i0(0)` is 1. Without any input this function gives 1, and pass-through credits that to
# the input, however small the input is. It conserves, and still misleads:

# %%
tiny = torch.tensor([[2.0, 0.001]])


def score(x: torch.Tensor) -> torch.Tensor:
    return torch.special.i0(x).sum(1)


passed = InputCAV(score, rules={torch.special.i0: rules.pass_through}, normalize=None).attribute(tiny)
print("score", score(tiny).item(), "of which the inputs gave", passed.tolist())

# %% [markdown]
# A better rule takes the 1 for what it is, a constant, and gives the input the rest. The last two lines are the pattern:
# *the same value*, a slope of your choice on top of what does not move, and a note of the constant.


# %%
@rules.rule(torch.special.i0)
def above_one(operation: rules.Operation) -> torch.Tensor:
    x = operation.args[0]
    value, at_zero = operation.value().detach(), operation.evaluate(torch.zeros_like(x))
    slope = torch.where(x == 0, 0.0, (value - at_zero) / x).detach()
    output = value + slope * (x - x.detach())
    operation.add_constant(output, at_zero)
    return output


better, delta = InputCAV(score, rules={torch.special.i0: above_one}, normalize=None).attribute(
    tiny, return_convergence_delta=True
)
print("the inputs gave", better.tolist(), "and the constants", (score(tiny) - better.sum() - delta).item())
confirmed = verify(net, x, target=1, rules={torch.special.i0: above_one})
print(confirmed)

# %% [markdown]
# `verify` finds what does not add up, too. Here somebody used the derivative, and somebody else got the value wrong:

# %%
wrong = [
    verify(net, x, target=1, rules={torch.special.i0: rules.GradientRule()}),
    verify(net, x, target=1, rules={torch.special.i0: lambda operation: 2 * operation.value()}),
]
print(*wrong, sep="\n")

# %% [markdown]
# What adds up need not be right: `verify` was content with pass-through as well. So first work a rule out by hand on
# numbers that you can check, as above.
#
# Checks:

# %%
reasons = {row.module: row.why for row in table if row.operation == "conv2d"}
assert reasons["blocks.15.expand.conv"] == "'blocks.*'"
assert reasons["blocks.15.project.conv"] == "'blocks.15.project.conv'"
assert reasons["head.conv"] == "type Conv2d"
assert table[-1].why == "this module"
assert all(float(middle.min()) >= 0 for middle in maps["z+"]), "z+ shows nothing that lowered the score"
assert in_cat["pinpoint"] > 0.95 > in_cat["gamma"] > in_cat["paper"]
assert likeness["pinpoint", "German shepherd"] < -0.9
assert likeness["paper", "school bus"] < 0.6 < 0.9 < min(likeness[name, "school bus"] for name in ("gamma", "pinpoint"))
assert lowered == sorted(lowered), "the stronger gamma, the less lowered the score"
torch.testing.assert_close(by_size, torch.tensor([[2 / 3, 1 / 3]]))
torch.testing.assert_close(passed, torch.special.i0(tiny))
torch.testing.assert_close(better, torch.special.i0(tiny) - 1)
assert checked.ok
assert confirmed.ok
assert not any(one.ok for one in wrong)
