# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 9. A shortcut in a dataset: what does the network go by?
#
# Clever Hans was a horse that seemed to count. It watched the faces of the people around. Networks do the same: where
# most pictures of a class carry a mark, as a watermark, a ruler or a label, the mark is enough, and the network learns
# the mark. Its accuracy does not tell. One explanation does not tell either, unless somebody looks at the right picture.
#
# Here all pictures of a dataset are explained, and the maps are compared with each other. Nobody says where to look.
#
# This tutorial needs scikit-learn: `pip install "captum_cav[analysis]"`.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import to_pil_image

from captum_cav import InputCAV, datasets
from captum_cav.datasets.analysis import analyze
from captum_cav.datasets.summary import write_summary
from captum_cav.visualization import Panel, show_map

torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A dataset with a mark
#
# Faint digits in noise. Three of four pictures of the digit 3 get a white mark in the corner. We plant the mark here, so
# that we can check what is found.

# %%
loaded = load_digits()
labels = torch.from_numpy(loaded.target)
clean = 0.3 * torch.from_numpy(loaded.images).float()[:, None] / 16
clean = clean + 0.15 * torch.randn(clean.shape)
has_mark = (labels == 3) & (torch.rand(len(labels)) < 0.75)
pictures = clean.clone()
pictures[has_mark, :, :3, :3] = 1.0

figure, axes = plt.subplots(1, 8, figsize=(10, 1.8), layout="constrained")
figure.suptitle("Pictures of the digit 3")
for axis, picture in zip(axes, pictures[labels == 3]):
    axis.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()


# %%
def train(inputs: torch.Tensor) -> nn.Module:
    """A small convolutional network."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 16, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(10):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, inputs: torch.Tensor) -> float:
    """How many digits 3 are recognised."""
    threes = labels == 3
    return float((model(inputs[threes]).argmax(1) == 3).float().mean())


model = train(pictures)
print(f"digits 3 recognised: {accuracy(model, pictures):.0%}; without their marks: {accuracy(model, clean):.0%}")

# %% [markdown]
# The first number looks fine. The second number is what the network knows about the digit, and in practice nobody can
# compute this number, because nobody knows about the mark.
#
# ## Explain all pictures
#
# `explain_dataset` explains each picture for its label and writes rows and maps. It goes on where it stopped, if it is
# stopped. `captum-cav dataset` is the command for folders of pictures.

# %%
explained = datasets.explain_dataset(
    InputCAV(model, rules="epsilon_plus", normalize="abs"),
    TensorDataset(pictures, labels),
    folder / "explained",
    targets="label",
    batch_size=256,
    classes=[f"digit {number}" for number in range(10)],
    progress=False,
)
print(len(explained), "rows; the first:", {name: explained[0].row[name] for name in ("id", "label", "target", "score")})

# %% [markdown]
# ## Compare the maps of each class
#
# `analyze` links each map with its nearest neighbours among the maps of its class, cuts the class into groups where the
# links are weakest, and measures how far the groups stand apart (spectral relevance analysis, Lapuschkin et al. 2019).
# Classes with a group far from the rest come first.

# %%
found = analyze(explained)
for one in found.classes:
    mark = "  <- possible shortcut" if one in found.reported else ""
    print(f"{one.name}: {one.clustering.distance:4.1f} standard deviations{mark}")

# %% [markdown]
# Ways of writing a digit stand 2 to 4 standard deviations apart. The group in the class of the 3 stands out. To be
# reported, a group must stand more than 6 apart, in total and at one place alone, and farther than groups in random maps
# of the same mean and covariance.
#
# ## Look at the group
#
# The mean map of the group, beside that of all other pictures of the class. This is how a shortcut looks.

# %% tags=["picture"]
first = found.classes[0]
group = first.clustering.standout
others = [place for place in range(len(first.rows)) if place not in group.members]
sides = {
    f"{len(group.members)} pictures stand apart": (group.members, group.mean),
    f"the other {len(others)} of {first.name}": (others, first.maps[others].mean(0)),
}
figure, axes = plt.subplots(2, 5, figsize=(10, 4.4), layout="constrained", width_ratios=[1.5, 1, 1, 1, 1])
for row, (title, (members, mean)) in zip(axes, sides.items()):
    show_map(torch.full((8, 8, 3), 0.6), Panel("mean map", mean, signed=True), axes=(figure, row[0]))
    row[0].set_title(title, fontsize=10)
    for axis, place in zip(row[1:], members):
        seen = pictures[first.rows[place], 0].clamp(0, 1)
        show_map(seen[..., None].expand(-1, -1, 3), Panel("map", first.maps[place], signed=True), axes=(figure, axis))
        axis.set_title(f"row {first.rows[place]}", fontsize=10)

# %% [markdown]
# Each picture as a point: to the right what is more like the group that stands apart.

# %%
points = first.clustering.points
colours = ["tab:red" if place in group.members else "tab:blue" for place in range(len(points))]
figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.scatter(points[:, 0], points[:, 1], c=colours, s=12)
axis.set_xlabel("standard deviations from the middle, along the difference of both mean maps")
_ = axis.set_ylabel("other differences")

# %% [markdown]
# Since we planted the mark, we can count how often it was found.

# %%
raised = group.mean.clamp(min=0)
share_on_mark = float(raised[:3, :3].sum() / raised.sum())
of_group = torch.tensor([bool(has_mark[first.rows[place]]) for place in group.members])
print(f"share of the positive contribution on the mark: {share_on_mark:.0%}")
print(
    f"{int(of_group.sum())} of {len(of_group)} pictures of the group have the mark; {int(has_mark.sum())} have it in all"
)

# %% [markdown]
# ## Without the mark
#
# The same network, trained on the same digits without the mark: nothing is reported.

# %%
clean_model = train(clean)
without = analyze(
    datasets.explain_dataset(
        InputCAV(clean_model, rules="epsilon_plus", normalize="abs"),
        TensorDataset(clean, labels),
        folder / "clean",
        targets="label",
        batch_size=256,
        progress=False,
    )
)
largest = without.classes[0].clustering.distance
print(f"reported: {[one.name for one in without.reported]}; the largest distance is {largest:.1f}")
print(f"digits 3 recognised by this network: {accuracy(clean_model, clean):.0%}")

# %% [markdown]
# ## One page for everybody
#
# `write_summary` writes one HTML file with all classes, groups, pictures and points, to open in any browser. The command
# `captum-cav summary DIR` writes the same page.

# %%
write_summary(folder / "summary.html", found, lambda row: to_pil_image(pictures[row["index"]].clamp(0, 1)))
print(f"summary.html has {(folder / 'summary.html').stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# ## What this cannot find
#
# - A mark that *all* pictures of the class have makes no second group. The mean map of the class shows such a mark, so
#   look at the mean maps, too.
# - A mark that has no fixed place, or a property of the whole picture such as its colour, does not stand out at one place.
#   Explain a later layer or look at the groups, which the page shows whether they are reported or not.
# - A mark in less than 5 % of the pictures of a class is too rare.
# - A group that is reported may be a real part of the class. Only somebody who looks at the pictures can tell.

# %%
assert [one.target for one in found.reported] == [3]
assert share_on_mark > 0.8
assert of_group.float().mean() > 0.95
assert not without.reported
assert accuracy(model, clean) < accuracy(model, pictures) - 0.2
