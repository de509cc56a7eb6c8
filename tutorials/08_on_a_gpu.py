# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 8. On a GPU: batches, half precision, many classes
#
# `captum_cav` runs where the model is. This notebook is the same code on a GPU and without one: it takes a GPU if there
# is one, and says so.

# %%
# %matplotlib inline
import time
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, zoo
from captum_cav.visualization import Panel, show_map, spatial_map

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
print("running on", device)

# %% [markdown]
# ## One device
#
# Model and inputs go to the device, as ever; attributions and deltas come back on it. Inputs on another device are an
# error that says which of them is where.

# %%
network = zoo.load("efficientnet_lite0")
model = network.model.to(device)
batch = network.preprocess(zoo.demo_picture())[None].to(device)
tabby = network.class_index("tabby")

cav = LayerCAV(model, ["head", "blocks.10", "blocks.4"], normalize="abs")
attributions, deltas = cav.attribute(batch, tabby, return_convergence_delta=True)
for ratios, delta in zip(attributions, deltas):
    print(tuple(ratios.shape), ratios.device, f"unexplained {delta.item():.0e}")

# %% [markdown]
# Drawing takes tensors from any device, so there is no `.cpu()` to remember. Kept for later they take the GPU's memory,
# and a layer's ratios are large: sum the channels on the device, and move the map.
#
# ## Batches
#
# Samples are explained independently, whatever else is in the batch. Here are six pictures made of one: each half alone,
# the halves exchanged, and so on.

# %%
dog, cat = batch[:, :, :112], batch[:, :, 112:]
views = {
    "as it is": batch,
    "mirrored": batch.flip(3),
    "upside down": batch.flip(2),
    "exchanged": torch.cat([cat, dog], 2),
    "dog alone": F.interpolate(dog, (224, 224), mode="bilinear"),
    "cat alone": F.interpolate(cat, (224, 224), mode="bilinear"),
}
pictures = torch.cat(list(views.values()))
scores = model(pictures).detach()[:, tabby].tolist()
middle = LayerCAV(model, "blocks.10", normalize="abs")
ratios, delta = middle.attribute(pictures, tabby, return_convergence_delta=True)
maps = spatial_map(ratios, (224, 224)).cpu()
print("maps", tuple(maps.shape), "deltas", tuple(delta.shape))

# %% tags=["picture"]
figure, axes = plt.subplots(1, len(views), figsize=(13, 2.6), layout="constrained")
figure.suptitle("What raised (red) and lowered (blue) the score of tabby")
for axis, name, score, view, one in zip(axes, views, scores, pictures.cpu(), maps):
    shown = (view.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)  # the network's pixels lie between -1 and 1
    show_map(shown, Panel(name, one, signed=True), axes=(figure, axis))
    axis.set_title(f"{name}\nscore {score:.1f}", fontsize=10)

# %% [markdown]
# The blue of the dog's head goes wherever the dog goes. One call gives what six calls would:

# %%
single = torch.cat([middle.attribute(view, tabby) for view in views.values()])
batch_difference = ((single - ratios).abs().max() / ratios.abs().max()).item()
print(f"largest difference between one by one and together: {batch_difference:.0e} of the largest ratio")

# %% [markdown]
# Each sample may have a target of its own: a list, or a tensor of one a sample. Where a batch does not fit into memory,
# split it, and keep the maps on the CPU:

# %%
best = model(pictures).detach().argmax(1)
pieces = [
    spatial_map(middle.attribute(piece, classes), (224, 224)).cpu()
    for piece, classes in zip(pictures.split(2), best.split(2))
]
print([network.class_name(int(index)) for index in best], "->", tuple(torch.cat(pieces).shape))

# %% [markdown]
# ## Many classes at once
#
# `attribute_targets` runs the model forward once, and backward once for each class, down to the first layer that was
# asked for. Asking for late layers is cheap, in time and in memory: nothing in front of them builds a graph.


# %%
def seconds(what: Callable[[], Any]) -> float:
    """How long something takes, the second time; a GPU works on its own, so it is waited for."""
    what()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    what()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


ten = model(batch).detach()[0].topk(10).indices.tolist()
at_once = cav.attribute_targets(batch, ten)
one_by_one = [cav.attribute(batch, target) for target in ten]
print("the same:", all(torch.equal(a, b) for x, y in zip(at_once, one_by_one) for a, b in zip(x, y)))
for name, what in (
    ("ten classes one by one", lambda: [cav.attribute(batch, target) for target in ten]),
    ("ten classes at once", lambda: cav.attribute_targets(batch, ten)),
    ("one class, three layers", lambda: cav.attribute(batch, tabby)),
    ("one class, the last layer", lambda: LayerCAV(model, "head").attribute(batch, tabby)),
    ("one class, the input", lambda: InputCAV(model).attribute(batch, tabby)),
):
    print(f"{name:26} {1000 * seconds(what):6.0f} ms")

# %% [markdown]
# On a GPU its memory is of interest as well:

# %%
if device.type == "cuda":
    for layer in ("blocks.0", "blocks.10", "head"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        LayerCAV(model, layer).attribute(pictures, tabby)
        print(f"{layer:10} {(torch.cuda.max_memory_allocated() - before) / 2**20:6.0f} MiB at most")
else:
    print("no GPU, whose memory could be measured")

# %% [markdown]
# ## Half precision
#
# Under `torch.autocast` the operations run in half precision, and so do their contributions. It is faster where the
# hardware has it, and the price is seen in two numbers: what stays unexplained, and how near the maps are to those in
# full precision. Near the input, where large contributions of both signs cancel, it costs the most.

# %%
exact = [spatial_map(ratios, (224, 224)) for ratios in attributions]
half_likeness, half_unexplained = {}, []
for kind in (torch.bfloat16, torch.float16):
    with torch.autocast(device.type, dtype=kind):
        rough, unexplained = cav.attribute(batch, tabby, return_convergence_delta=True)
    for layer, full, ratios, delta in zip(("head", "blocks.10", "blocks.4"), exact, rough, unexplained):
        both = torch.stack([full.flatten(), spatial_map(ratios.float(), (224, 224)).flatten()])
        half_likeness[kind, layer] = torch.corrcoef(both)[0, 1].item()
        half_unexplained.append(abs(delta.item()))
        print(f"{ratios.dtype}  {layer:10} correlation {half_likeness[kind, layer]:.4f}  delta {delta.item():+.0e}")

# %% [markdown]
# `float16` has more digits than `bfloat16`, and less range. A model that was cast with `.half()` or `.bfloat16()` works
# in the same way, with inputs of its type. Explain in full precision where you can: a map is made once.
#
# ## Compiled and parallel models
#
# A model that `torch.compile` or `DataParallel` wraps is explained as the model inside; there is nothing to unwrap.

# %%
compiled = LayerCAV(torch.compile(model), "head", normalize="abs").attribute(batch, tabby)
print("as without:", torch.equal(compiled, attributions[0]))

# %% [markdown]
# Checks:

# %%
assert all(ratios.device.type == device.type for ratios in attributions)
assert max(delta.abs().item() for delta in deltas) < 1e-3
assert delta.shape == (1,)
assert batch_difference < 1e-3
assert torch.cat(pieces).shape == maps.shape
assert scores[5] > scores[0] > scores[4], "tabby: the cat alone, both, the dog alone"
for a, b in zip(at_once[3], one_by_one[3]):
    torch.testing.assert_close(a, b)
assert all(half_likeness[kind, "head"] > 0.99 for kind in (torch.bfloat16, torch.float16))
assert all(half_likeness[torch.float16, layer] > 0.95 for layer in ("blocks.10", "blocks.4"))
assert max(half_unexplained) < 0.05
torch.testing.assert_close(compiled, attributions[0])
