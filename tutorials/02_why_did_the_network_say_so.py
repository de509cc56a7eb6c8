# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 2. Why did the network say so?
#
# One photograph, a dog above a cat, and networks that were trained on ImageNet. What in the picture gave *German
# shepherd* its score, and what *tabby*? Here are the paper's two looks at that (its figures 6 and 7), five depths of a
# network each, how to read them, and a first test whether they are true.

# %%
# %matplotlib inline
from pathlib import Path

import IPython
import torch
from captum.attr import LayerGradCam
from torchvision.models import VGG16_Weights

import captum_cav
from captum_cav import LayerCAV, zoo
from captum_cav.ablation import ablate, box_mask
from captum_cav.visualization import Panel, show_classes, show_difference, show_rows, spatial_map

# %% [markdown]
# ## What it says
#
# `captum_cav.zoo` has two networks whose weights come as packages. A *score* is an output before the softmax.

# %%
picture = zoo.demo_picture()
network = zoo.load("efficientnet_lite0")
batch = network.preprocess(picture)[None]
scores = network.model(batch).detach()[0]
for score, index in zip(*scores.topk(5)):
    print(f"{score:5.2f}  {network.class_name(int(index))}")
IPython.display.display(picture)

# %% [markdown]
# ## Five depths
#
# The ratios of a layer, summed over its channels, are a map: which share of the score came from each place. All layers
# come out of one forward and one backward pass, and further classes cost one more backward pass each.
#
# `normalize="abs"` divides by the score's size, so that positive *raised* the score, even where a score is negative.

# %%
names = ["German shepherd", "tabby"]
targets = [network.class_index(name) for name in names]
cav = LayerCAV(network.model, network.depths, normalize="abs")
explained = cav.attribute_targets(batch, targets, return_convergence_delta=True)
maps = [attributions for attributions, _ in explained]
shown = network.display(picture)

# %% [markdown]
# **What raised the score**, as heat (figure 6). The last feature layer (left) is coarse. Toward the input the maps get
# sharper, and near it they scatter. So one looks at several layers at once.

# %%
show_classes(shown, maps, names, network.depths)[0]

# %% [markdown]
# At the last feature layer CAV shows the same places as Grad-CAM at the same resolution, for behind it there is only an
# average and one fully connected layer. Grad-CAM ends there; CAV goes on.

# %%
cams = [LayerGradCam(network.model, network.model.head).attribute(batch, target)[0, 0].detach() for target in targets]
panels = []
for name, cam, (head, *_) in zip(names, cams, maps):
    panels.append(Panel(f"Grad-CAM {name}", cam.clamp(min=0), unit=""))
    panels.append(Panel(f"CAV {name}", spatial_map(head, (224, 224))[0]))
show_rows(shown, [("", panels)])[0]

# %% [markdown]
# **What raised it and what lowered it** (figure 7): red and blue over the grey picture. For *tabby* the dog's head is
# blue, and for *German shepherd*, at 14 x 14, the cat's eye. A heat map cannot show that: a score can be low because
# little speaks for it, or because something speaks against it.

# %%
show_classes(shown, maps, names, network.depths, signed=True)[0]

# %% [markdown]
# ## Is it true?
#
# If the dog held *tabby* down, then without the dog *tabby* must rise. `ablate` disables a part of the input (or the
# features of a layer) and compares the scores:

# %%
upper, lower = box_mask((0, 0, 224, 112), (224, 224)), box_mask((0, 112, 224, 224), (224, 224))
without = {
    animal: ablate(network.model, batch, None, half, targets=targets, class_names=network.classes)
    for animal, half in (("dog", upper), ("cat", lower))
}
for animal, ablation in without.items():
    print(f"without the {animal}:", *ablation.standings(targets), sep="\n    ")

# %% [markdown]
# It rises. And without the cat, *German shepherd* rises even more, as the cat's blue eye said. (What a network computes
# for half a picture is a question of its own; tutorial 5 asks it properly.)
#
# ## Where the score is
#
# `captum_cav.explain` does in one call what this notebook did so far. Its table begins with the same test: the network
# does not see the places that raised, or lowered, the score most. Below that, at each depth, what raised the score, what
# lowered it and what constants gave (biases and the shifts of batch norms, which belong to no place) add up to 100 %.
# Read this table before believing a picture:

# %%
print(captum_cav.explain(network, picture, names).table())

# %% [markdown]
# Two things are seen here. The nearer to the input, the more raised and lowered the score at once and nearly cancels: at
# `blocks.0` more than ten times the score, for each sign. So of a fine map believe its regions, not its single spots.
# And below the last layer the constants hold about as much as the whole score: the shifts of batch norms, which have no
# place in a picture.

# %% [markdown]
# ## One class rather than another
#
# *Why tabby, and not German shepherd?* is a question about the difference of two scores, and it has an answer of its own:
# what raises both alike cancels before it is followed back.

# %% tags=["picture"]
show_difference(shown, network.model, network.depths[:4], batch, targets[::-1], ("tabby", "German shepherd"))[0]

# %% [markdown]
# ## Another network
#
# SqueezeNet 1.1 has only convolutions, ReLU and max pooling. Here both looks of both classes, in one call.

# %%
squeezenet = zoo.load("squeezenet1_1")
of_squeezenet = captum_cav.explain(squeezenet, picture, names)
of_squeezenet.figure()

# %% [markdown]
# It looks at the same heads, but its two classes hardly differ. The scores say why: this network gives *all* classes
# scores far above 0, and what raises every class raises these two. Here the difference is the better question:

# %%
small = squeezenet.preprocess(picture)[None]
classes = [squeezenet.class_index(name) for name in reversed(names)]
all_scores = squeezenet.model(small).detach()[0]
print(f"scores of all 1000 classes: {all_scores.min():.1f} to {all_scores.max():.1f}, mean {all_scores.mean():.1f}")
show_difference(
    squeezenet.display(picture), squeezenet.model, squeezenet.depths[:4], small, classes, ("tabby", "German shepherd")
)[0]

# %% [markdown]
# ## VGG-16
#
# The paper's own network. Its weights are a download of 528 MB, so this notebook uses them only where torchvision has
# fetched them before.

# %%
if (Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_Weights.DEFAULT.url).name).is_file():
    IPython.display.display(captum_cav.explain(zoo.load("vgg16"), picture, names).figure())
else:
    print('No weights of VGG-16 here. Run zoo.load("vgg16") once, which downloads them, and then this cell again;')
    print('or give a file of yours: zoo.load("vgg16", weights="vgg16-397923af.pth").')

# %% [markdown]
# `captum-cav reproduce` repeats all of the paper's experiments, and `captum-cav explain IMAGE --target ...` does for a
# picture of yours what this notebook did.
#
# Checks:

# %%
assert max(delta.abs().item() for _, deltas in explained for delta in deltas) < 1e-3
for cam, ratios in zip(cams, maps):
    both = torch.stack([cam.flatten(), spatial_map(ratios[0], (224, 224))[0].flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99, "at the last layer CAV and Grad-CAM agree"
tabby_at_14 = spatial_map(maps[1][1], (224, 224))[0]
assert tabby_at_14[:7].sum() < 0 < tabby_at_14[7:].sum(), "the dog's half lowered tabby, the cat's half raised it"
assert without["dog"].score_changes([targets[1]]).item() > 1, "without the dog, tabby rises"
assert without["cat"].score_changes([targets[0]]).item() > 1, "without the cat, German shepherd rises"
shepherd, tabby = of_squeezenet.classes
assert shepherd.score > tabby.score > 20
