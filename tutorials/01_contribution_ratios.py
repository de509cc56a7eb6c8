# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 1. Contribution ratios, from pencil and paper to a photograph
#
# *Contribution Analysis Visualization* (CAV, Kakishita and Hattori) asks of every unit of a network: **which share of the
# score came from it?** Here the shares of a net of two layers are worked out by hand, and `captum_cav` finds the same
# numbers. Then: what biases do, why the shares always add up, when they equal gradient x activation, and when not.
#
# (CAV here is never Captum's `captum.concept.CAV`, which stands for Concept Activation Vector.)

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import torch
from captum.attr import LayerGradientXActivation
from torch import nn

from captum_cav import InputCAV, LayerCAV, zoo
from captum_cav.visualization import show_layers

# %% [markdown]
# ## By hand
#
# Two inputs, two hidden units with ReLU, one score:
#
# $$h_1 = \max(0,\; x_1 + x_2),\qquad h_2 = \max(0,\; x_1 - x_2),\qquad p = h_1 + 2 h_2 + 1 .$$
#
# For $x = (3, 1)$: $h = (4, 2)$ and $p = 4 + 4 + 1 = 9$.
#
# **Fully connected** (the paper's equations 1-4): an input's ratio is its summand of the output, $x_i w_{ji} / y_j$; the
# bias is one more input, always 1. So $\beta[h_1 \to p] = 4/9$, $\beta[h_2 \to p] = 4/9$, and the bias has the
# remaining $1/9$.
#
# **Activation** (equation 7): passes the ratio on unchanged.
#
# **Chain** (equations 5 and 6): $\beta[x_i \to p] = \sum_j \beta[h_j \to p]\, \beta[x_i \to h_j]$:
#
# | | share of $h_1 = 3 + 1$ | share of $h_2 = 3 - 1$ | share of $p$ |
# |---|---|---|---|
# | $x_1$ | $3/4$ | $3/2$ | $\frac49\cdot\frac34 + \frac49\cdot\frac32 = 1$ |
# | $x_2$ | $1/4$ | $-1/2$ | $\frac49\cdot\frac14 - \frac49\cdot\frac12 = -\frac19$ |
#
# $x_2$ **lowered** the score: its ratio is negative. Ratios and the bias's share sum to one: $1 - \frac19 + \frac19 = 1$.

# %% [markdown]
# ## With `captum_cav`
#
# `LayerCAV` takes the model and a layer, as Captum's layer attributions do; `InputCAV` explains the inputs.


# %%
def two_layers(bias: tuple[float, float] = (0.0, 0.0), activation: nn.Module | None = None) -> nn.Sequential:
    """The net from above; the hidden units may have biases and another activation."""
    net = nn.Sequential(nn.Linear(2, 2), activation or nn.ReLU(), nn.Linear(2, 1)).eval()
    for parameter, values in zip(net.parameters(), ([[1.0, 1.0], [1.0, -1.0]], bias, [[1.0, 2.0]], [1.0])):
        parameter.data.copy_(torch.tensor(values))
    return net


net = two_layers()
x = torch.tensor([[3.0, 1.0]])
hidden = LayerCAV(net, "1").attribute(x)
inputs = InputCAV(net).attribute(x)
print("score       ", net(x).item())
print("hidden units", hidden.tolist(), " = 4/9 each")
print("inputs      ", inputs.tolist(), " = 1 and -1/9")

# %% [markdown]
# ## Biases
#
# Now the hidden units get biases of their own, $+1$ and $-1$: $h = (5, 1)$ and $p = 5 + 2 + 1 = 8$. A bias takes its share
# of the unit that it is added to, and the unit hands that on: $\frac58\cdot\frac15 + \frac28\cdot\frac{-1}{1} = -\frac18$.
#
# These **constants** belong to no input. `captum_cav` measures their share in the same backward pass. The *delta* is what
# is left over: `1 - ratios of the layer - shares of the constants behind it`.

# %%
biased = two_layers(bias=(1.0, -1.0))
parts = {}
for place, cav, names in (
    ("hidden units", LayerCAV(biased, "1"), ("$h_1$", "$h_2$")),
    ("inputs", InputCAV(biased), ("$x_1$", "$x_2$")),
):
    ratios, delta = cav.attribute(x, return_convergence_delta=True)
    constants = 1 - ratios.sum() - delta.item()
    parts[place] = dict(zip((*names, "constants"), [*ratios[0].tolist(), constants.item()]))
    print(f"{place:12}  ratios {ratios.tolist()[0]}  constants {constants:.3f}  delta {delta.item():.0e}")

# %% [markdown]
# Whatever the layer, its ratios and the constants behind it make up the whole score: this is **conservation**. Behind the
# hidden units lies only the last bias, $\frac18$; behind the inputs lie all three, $\frac18 - \frac18 = 0$.

# %% tags=["picture"]
figure, columns = plt.subplots(1, 2, figsize=(8, 2.2), layout="constrained", sharex=True)
figure.suptitle("Which share of the score of 8 came from where")
for axis, (place, shares) in zip(columns, parts.items()):
    colours = [
        "0.6" if name == "constants" else "tab:red" if share > 0 else "tab:blue" for name, share in shares.items()
    ]
    bars = axis.barh(list(shares), list(shares.values()), color=colours)
    axis.bar_label(bars, [f"{8 * share:+.0f}/8" if share else "0" for share in shares.values()], padding=4)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel=f"{place}: together {8 * sum(shares.values()):.0f}/8", xlim=(-0.4, 1.4), xticks=[])
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)

# %% [markdown]
# ## When it equals gradient x activation
#
# Write a ratio as $\beta_x = x\,c_x / p$. For a fully connected layer the chain says
#
# $$x_i\,c_i = \sum_j \frac{x_i w_{ji}}{y_j}\; y_j\, c_j \quad\Longrightarrow\quad c_i = \sum_j w_{ji}\, c_j .$$
#
# The division by $y_j$ cancels, and what remains is what autograd computes for a gradient. The same holds for
# convolutions, sums, averages, and for ReLU and max pooling. So in networks of these alone, CAV **equals** activation x
# gradient / score, and there is no need to take that on trust:

# %%
torch.manual_seed(0)
convolutional = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 5)
)
convolutional = convolutional.double().eval()
pictures = torch.rand(4, 3, 16, 16, dtype=torch.float64)
ratios = LayerCAV(convolutional, "2", normalize="abs").attribute(pictures, target=1)  # some scores are negative
product = LayerGradientXActivation(convolutional, convolutional[2]).attribute(pictures, target=1).detach()
scores = convolutional(pictures).detach()[:, 1].abs()
relu_difference = (ratios - product / scores[:, None, None, None]).abs().max().item()
print(f"largest difference {relu_difference:.0e}")

# %% [markdown]
# ## ... and when not
#
# Any other activation $y = f(x)$ also passes its ratio on unchanged, so $x\,c_x = y\,c_y$: the slope that counts is
# **$y / x$, not the derivative**. Where the two curves lie on each other, CAV and gradient x activation agree.

# %%
line = torch.linspace(-4, 4, 400, requires_grad=True)
figure, columns = plt.subplots(1, 4, figsize=(10, 2.5), layout="constrained", sharey=True)
for axis, activation in zip(columns, (nn.ReLU(), nn.Tanh(), nn.GELU(), nn.ReLU6())):
    reach = 3 if isinstance(activation, nn.ReLU6) else 1  # to see what happens above 6
    values = activation(reach * line)
    (derivative,) = torch.autograd.grad(values.sum(), line)
    axis.plot(reach * line.detach(), (values / (reach * line)).detach(), "tab:red", linewidth=3, label="CAV: $y / x$")
    axis.plot(reach * line.detach(), derivative / reach, "black", linestyle="--", label="gradient: $f'(x)$")
    axis.set(title=type(activation).__name__, xlabel="$x$")
_ = figure.legend(*columns[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

# %% [markdown]
# A saturated tanh or ReLU6 has almost no derivative, so gradient x activation says that nothing came through it. CAV says
# how much of the score did. In the net from above:

# %%
for activation in (nn.ReLU(), nn.Tanh()):
    other = two_layers(activation=activation)
    score = other(x).item()
    ratios, delta = LayerCAV(other, "0").attribute(x, return_convergence_delta=True)
    product = LayerGradientXActivation(other, other[0]).attribute(x).detach() / score
    print(f"{type(activation).__name__:5} score {score:.3f}, of which the last bias is {1 / score:.3f}")
    for name, found in (("CAV", ratios), ("gradient x activation / score", product)):
        print(f"      {name:30} {found[0].numpy().round(3)}  with the bias {found.sum().item() + 1 / score:.3f}")

# %% [markdown]
# ## The same two lines on a photograph
#
# A real network differs in size only. The maps are the ratios summed over channels, from the last feature layer (left)
# toward the input; all five come out of **one** forward and **one** backward pass. Red raised the score of *tabby*, blue
# lowered it.

# %%
network = zoo.load("efficientnet_lite0")
picture = zoo.demo_picture()
batch = network.preprocess(picture)[None]
tabby = network.class_index("tabby")

maps, deltas = LayerCAV(network.model, network.depths).attribute(batch, tabby, return_convergence_delta=True)
print("left unexplained at most", max(delta.abs().item() for delta in deltas))
show_layers(network.display(picture), maps, network.depths, "tabby", signed=True)[0]  # [1] would be the axes

# %% [markdown]
# The [next tutorial](02_why_did_the_network_say_so.ipynb) reads these pictures.
#
# Checks, so that this notebook cannot quietly go wrong:

# %%
torch.testing.assert_close(hidden, torch.tensor([[4 / 9, 4 / 9]]))
torch.testing.assert_close(inputs, torch.tensor([[1.0, -1 / 9]]))
torch.testing.assert_close(list(parts["hidden units"].values()), [5 / 8, 2 / 8, 1 / 8])
torch.testing.assert_close(list(parts["inputs"].values()), [9 / 8, -1 / 8, 0.0], rtol=0, atol=1e-6)
assert relu_difference < 1e-12
torch.testing.assert_close(ratios.sum().item() + 1 / score, 1.0, rtol=0, atol=1e-6)  # tanh, CAV
assert product.sum().item() + 1 / score < 0.5  # tanh, gradient x activation
assert max(delta.abs().item() for delta in deltas) < 1e-3
