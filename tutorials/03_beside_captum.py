# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 3. Beside Captum
#
# `LayerCAV` is one more of Captum's layer attributions: the same constructor, the same targets, the same shapes. Here it
# stands beside Grad-CAM, gradient x activation, LRP, integrated gradients and DeepLift: by hand, then all in one call of
# `compare`, and last inside what Captum wraps around its methods.

# %%
# %matplotlib inline
import warnings

import matplotlib.pyplot as plt
import torch
from captum.attr import (
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    LayerGradientXActivation,
    LayerLRP,
    NoiseTunnel,
)
from captum.attr import visualization as captum_visualization
from captum.attr._utils.lrp_rules import GammaRule
from IPython.display import Markdown

from captum_cav import LayerCAV, Method, compare, metrics, zoo
from captum_cav.visualization import Panel, show_rows, spatial_map

warnings.filterwarnings("ignore", module="captum")  # that it sets hooks, and requires gradients of inputs
picture = zoo.demo_picture()

# %% [markdown]
# ## One interface
#
# SqueezeNet, a layer in its middle, the class *tabby*. Four classes of attributions, one line for each:

# %%
squeezenet = zoo.load("squeezenet1_1")
small = squeezenet.preprocess(picture)[None]
tabby = squeezenet.class_index("tabby")
layer = squeezenet.model.features[5]
score = squeezenet.model(small)[0, tabby].item()

found = {}
for attribution in (LayerGradCam, LayerGradientXActivation, LayerLRP, LayerCAV):
    found[attribution.__name__] = attribution(squeezenet.model, layer).attribute(small, target=tabby).detach()
for name, attributions in found.items():
    print(f"{name:25} shape {tuple(attributions.shape)!s:18} sum {attributions.sum():8.3f}")
print(f"the score                                                {score:8.3f}")

# %% [markdown]
# Grad-CAM is a map already and has units of its own. The others tell what each unit gave: gradient x activation and LRP in
# units of the score, CAV as shares of it. On this network, which has only convolutions, ReLU and max pooling, these three
# are **the same numbers**:

# %%
difference = {
    name: (found[name] - score * found["LayerCAV"]).abs().max().item() / found[name].abs().max().item()
    for name in ("LayerGradientXActivation", "LayerLRP")
}
for name, largest in difference.items():
    print(f"{name:25} differs from the score x LayerCAV by {largest:.0e} of its largest value")

# %% [markdown]
# ## Where they part
#
# EfficientNet-Lite0 has residual connections, batch norms and ReLU6. Captum's LRP has rules for certain types of modules. At
# any other type it stops; what is no module at all, as the `+` of a residual connection, it overlooks.

# %%
network = zoo.load("efficientnet_lite0")
batch = network.preprocess(picture)[None]
target = network.class_index("tabby")
try:
    LayerLRP(network.model, network.model.head).attribute(batch, target=target)
except TypeError as error:
    refusal = str(error)
    print("LayerLRP:", refusal)

# %% [markdown]
# Gradient x activation runs, but a saturated ReLU6 has no gradient, so what came through it is lost. CAV passes it on, and
# what the map does not hold, constants do: the delta says what is left of the score.

# %%
score = network.model(batch)[0, target].item()
print(f"score {score:.3f}   gradient x activation        CAV + constants   left over")
for name in network.depths:
    product = LayerGradientXActivation(network.model, network.model.get_submodule(name)).attribute(batch, target)
    cav = LayerCAV(network.model, name, normalize=None)
    contributions, delta = cav.attribute(batch, target, return_convergence_delta=True)
    constants = score - contributions.sum() - delta.item()
    print(f"  {name:10} {product.sum():20.3f} {contributions.sum():18.3f} + {constants:5.3f} {delta.item():14.0e}")

# %% [markdown]
# ## All in one call
#
# `compare` runs methods on the same inputs at the same layers, keeps their maps in the same sign (red raised the score),
# measures them and counts what they cost. A method is a short name, a `Method` with options, a class, or a function.
# `on_error="record"` notes what fails and goes on.
#
# The picture has the dog in its upper and the cat in its lower half, so for *tabby* it is known where the map should lie:
# `mass_accuracy` is the share of a map's positive part that lies there. `single_deletion` covers one cell of a grid after the
# other and compares how the score falls with what the map says of that cell.

# %%
lower_half = torch.zeros(1, 224, 224, dtype=torch.bool)
lower_half[:, 112:] = True
report = compare(
    network.model,
    batch,
    target,
    methods={
        "Grad-CAM": "gradcam",
        "CAV": "cav",
        "CAV, pinpoint": "cav:pinpoint",
        "LRP": "layer_lrp",
        "integrated gradients": Method(IntegratedGradients, n_steps=16, internal_batch_size=8),
        "DeepLift": "deeplift",
    },
    layers=["head", "blocks.10", "blocks.4"],
    metrics=["mass_accuracy", "single_deletion"],
    masks=lower_half,
    repeats=1,
    progress=False,
    on_error="record",
)
Markdown(report.to_markdown())

# %%
report.figure(picture=network.display(picture), title="What raised (red) and lowered (blue) the score of tabby")

# %% [markdown]
# `report.raw` and `report.maps` hold the maps, at their own resolution and on the common grid. Four of them beside each other:

# %% tags=["picture"]
places = [(name, "blocks.10") for name in ("Grad-CAM", "CAV", "CAV, pinpoint")] + [("DeepLift", "input")]
panels = [Panel(name, report.raw[name, where][0], signed=True, unit="") for name, where in places]
show_rows(network.display(picture), [("tabby", panels)])[0]

# %% [markdown]
# How to read this:
#
# - At `head`, the last feature layer, Grad-CAM and CAV agree. Below it Grad-CAM's one weight a channel means little, and CAV
#   goes on.
# - Integrated gradients and DeepLift explain the input, pixel by pixel, and ask another question: what is different from a
#   grey picture, their baseline. CAV has none.
# - LRP was refused, and the note says why: what Captum would overlook would make a wrong map without a word.
# - One forward and one backward pass give CAV at *all* layers; here each row ran by itself, to be timed.
# - One picture proves nothing. What holds for many is measured by `python -m benchmarks.localization` and
#   `python -m benchmarks.faithfulness`; how to test a map is [tutorial 5](05_is_the_explanation_true.ipynb).
#
# Rows, maps and settings can be kept: `report.to_pandas()`, `report.to_csv(...)`, `report.save(...)`. From the shell,
# `captum-cav compare IMAGE` does the same.
#
# ## Inside what Captum brings
#
# **NoiseTunnel** averages over noisy copies of the input (SmoothGrad). What the noise carries off was never firm:

# %%
cav = LayerCAV(network.model, "blocks.2", normalize="abs")
torch.manual_seed(0)
smooth = NoiseTunnel(cav).attribute(batch, nt_type="smoothgrad", nt_samples=16, stdevs=0.3, target=target)
plain = cav.attribute(batch, target)
show_rows(
    network.display(picture),
    [
        (
            "",
            [
                Panel(name, spatial_map(found, (224, 224))[0], True)
                for name, found in (("plain", plain), ("smooth", smooth))
            ],
        )
    ],
)[0]

# %% [markdown]
# **Captum's pictures and its resizing** take our maps as they take its own:

# %%
heat = LayerAttribution.interpolate(plain.sum(1, keepdim=True), (224, 224), "bilinear")
figure, axis = plt.subplots(figsize=(3, 3))
_ = captum_visualization.visualize_image_attr(
    heat[0].permute(1, 2, 0).numpy(),
    plt.np.asarray(network.display(picture)),
    method="blended_heat_map",
    sign="all",
    plt_fig_axis=(figure, axis),
    use_pyplot=False,
)

# %% [markdown]
# **Its metrics.** Captum's infidelity and sensitivity are made for attributions to inputs; `captum_cav.metrics` has the same
# two for layers as well. Sensitivity: by how much does the map change, at most, when the input moves a little?

# %%
sensitivity = {}
for name in network.depths[:3]:
    attribute = LayerCAV(network.model, name, normalize="abs").attribute
    torch.manual_seed(0)
    sensitivity[name] = metrics.sensitivity_max(attribute, batch, n_perturb_samples=4, target=target).item()
    print(f"{name:10} {sensitivity[name]:.2f}")

# %% [markdown]
# **Its rules.** `module.rule = ...` is Captum's way to choose a rule, and its own rule objects are honoured here, with the same
# result. (captum_cav leaves the attribute where you put it; Captum's LRP deletes it, so ours comes first.)

# %%
squeezenet.model.features[3].squeeze.rule = GammaRule(0.25)
by_cav = LayerCAV(squeezenet.model, squeezenet.model.features[2], normalize=None).attribute(small, tabby)
by_lrp = LayerLRP(squeezenet.model, squeezenet.model.features[2]).attribute(small, tabby)
gamma_difference = ((by_cav - by_lrp).abs().max() / by_lrp.abs().max()).item()
print(f"with Captum's gamma rule in one layer, CAV and LRP differ by {gamma_difference:.0e}")

# %% [markdown]
# Checks:

# %%
assert max(difference.values()) < 1e-4, "CAV, LRP and gradient x activation agree on SqueezeNet"
assert "has no rule defined" in refusal
assert gamma_difference < 1e-4
rows = {(row.method, row.layer): row for row in report.rows}
assert [row.method for row in report.rows if row.error] == ["LRP"] * 3
at_head = torch.stack([report.raw[name, "head"].flatten() for name in ("Grad-CAM", "CAV")])
assert torch.corrcoef(at_head)[0, 1] > 0.99, "at the last layer Grad-CAM and CAV agree"
assert rows["CAV", "blocks.10"].forwards == rows["CAV", "blocks.10"].backwards == 1
assert rows["integrated gradients", "input"].forwards == 16
assert sensitivity["head"] < sensitivity["blocks.4"], "the finer, the less stable"
