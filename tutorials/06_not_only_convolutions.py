# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 6. Not only convolutions
#
# Contributions are followed through operations, not through kinds of networks. So the same two lines explain a vision
# transformer, a text classifier, an LSTM and a network that listens. Each of the four is trained here, in seconds, on data
# made here, so that it is known where the answer is; each map is compared with that truth.
#
# Real networks, trained by others on music, on fifty languages and on source code, are in the repository's `examples/`.

# %%
# %matplotlib inline
import warnings
from itertools import chain

import matplotlib.pyplot as plt
import torch
from captum.attr import LayerGradientXActivation
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from captum_cav import InputCAV, LayerCAV, verify
from captum_cav.visualization import Panel, show_rows, show_series, show_spectrogram, show_tokens, spatial_map

torch.set_num_threads(1)  # these networks are small: threads would wait for each other
torch.manual_seed(1)


def train(model, batch, loss, steps, rate):
    """Trains a model on batches (inputs, answers) that a function draws; returns it ready to be explained."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        inputs, answers = batch()
        optimizer.zero_grad()
        loss(model(inputs), answers).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


# %% [markdown]
# ## A vision transformer
#
# torchvision's `VisionTransformer`, the class of `vit_b_16`, but small: 64 patches of 4 x 4 pixels. It learns to tell a
# cross from a frame and from an X, somewhere in noise.

# %%
line = torch.arange(8)
cross, frame, letter_x = torch.zeros(3, 8, 8)
cross[3:5], cross[:, 3:5] = 1, 1
frame[:] = 1
frame[2:6, 2:6] = 0
letter_x[line, line], letter_x[line, 7 - line] = 1, 1
SHAPES = [cross, frame, letter_x]
NAMES = ["cross", "frame", "X"]


def picture(*shapes_and_places):
    """Noise of 32 x 32 pixels with shapes in it: (kind, row, column) each."""
    pixels = 0.3 * torch.randn(1, 32, 32)
    for kind, row, column in shapes_and_places:
        pixels[0, row : row + 8, column : column + 8] += SHAPES[kind]
    return pixels


def pictures(count=48):
    kinds = torch.randint(3, (count,))
    places = 4 * torch.randint(7, (count, 2))
    return torch.stack([picture((k, *p)) for k, p in zip(kinds.tolist(), places.tolist())]), kinds


transformer = VisionTransformer(32, 4, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=3)
transformer.conv_proj = nn.Conv2d(1, 48, kernel_size=4, stride=4)  # grey pictures
train(transformer, pictures, F.cross_entropy, steps=200, rate=2e-3)
inputs, answers = pictures(300)
vit_accuracy = (transformer(inputs).argmax(1) == answers).float().mean().item()
print(f"accuracy on new pictures: {vit_accuracy:.0%}")

# %% [markdown]
# Now a picture with two of them, as with the dog above the cat: a cross at the upper right, a frame at the lower left. What
# spoke for *cross*, and what for *frame*? The scores are logits, and one of them may be near 0 or below it, so contributions
# are asked for in its units: `normalize=None`.

# %% tags=["picture"]
both = picture((0, 4, 20), (1, 20, 4))[None]
scores = transformer(both)[0].tolist()
patches, deltas, panels = [], [], [Panel("picture", None)]
for target, name in enumerate(NAMES[:2]):
    cav = LayerCAV(transformer, "conv_proj", normalize=None)
    contributions, delta = cav.attribute(both, target=target, return_convergence_delta=True)
    patches.append(spatial_map(contributions, (32, 32))[0])
    deltas.append(delta.abs().item())
    panels.append(Panel(f"{name}, score {scores[target]:+.1f}", patches[-1], signed=True, unit="logits"))
grey = (255 * (both[0, 0].clamp(-1, 2) + 1) / 3).to(torch.uint8)
show_rows(grey[..., None].expand(-1, -1, 3).numpy(), [("", panels)])[0]  # [1] would be the axes

# %%
on_cross, on_frame = (slice(1, 3), slice(5, 7)), (slice(5, 7), slice(1, 3))
for name, patch in zip(NAMES, patches):
    given = patch[on_cross].sum(), patch[on_frame].sum()
    print(
        f"{name}: {given[0]:+.2f} from the cross, {given[1]:+.2f} from the frame, {patch.sum() - sum(given):+.2f} from noise"
    )

# %% [markdown]
# Red on the shape that was asked for, blue on the other. `conv_proj` makes a patch of pixels a token; the patches are where
# a transformer's picture is.
#
# **Where a map of tokens ends.** The head reads the class token alone. Attention moves what the patches say into it layer by
# layer, and behind the last layer the patches have nothing left to give:

# %%
LAYERS = ["encoder.dropout", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
shares = []
for name, tokens in zip(LAYERS, LayerCAV(transformer, LAYERS, normalize=None).attribute(both, target=1)):
    in_class_token, in_patches = tokens[0, 0].sum().item(), tokens[0, 1:].sum().item()
    shares.append((in_class_token, in_patches))
    print(f"{name:32} class token {in_class_token:+6.2f}   patches {in_patches:+6.2f}")

# %% [markdown]
# Ask for a layer in front of that. And ask for contributions: a layer norm divides by a deviation that grows with its inputs,
# so gradient x activation nearly cancels in front of it, whatever the score.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    gradient = LayerGradientXActivation(transformer, transformer.conv_proj).attribute(both, target=1).sum().item()
print(
    f"score {scores[1]:+.2f}: contributions of the patches {patches[1].sum():+.2f} and constants (class token, positions,"
)
print(
    f"biases) {scores[1] - patches[1].sum():+.2f}, unexplained {deltas[1]:.0e}; gradient x activation {gradient:+.2f}"
)

# %% [markdown]
# ## A text classifier at its embeddings
#
# Inputs of a text classifier are numbers of words; a number contributes nothing, its embedding does. So the layer to ask for
# is `embedding`, and the sum over its channels is the contribution of a word. The reviews are made of clauses such as "the
# plot was not dull". The truth: each clause praises or blames, and `not` turns it round. Most clauses decide.

# %%
GOOD, BAD = "good great lovely clever moving".split(), "bad dull silly boring weak".split()
NOUNS, VERBS = "plot cast music ending script".split(), "was seemed felt".split()
WORDS = ["", *GOOD, *BAD, *NOUNS, *VERBS, "the", "not", "and", "but"]


def one_of(words):
    return words[torch.randint(len(words), ())]


def review():
    """Three clauses, each a list of words, and for each whether it praises (+1) or blames (-1)."""
    clauses, signs = [], []
    for _ in range(3):
        negation, word = one_of([[], [], ["not"]]), one_of(GOOD + BAD)
        clauses.append(["the", one_of(NOUNS), one_of(VERBS), *negation, word])
        signs.append(1 if (word in GOOD) != bool(negation) else -1)
    for clause in clauses[1:]:
        clause.insert(0, one_of(["and", "but"]))
    return clauses, signs


def numbers(clauses):
    """A review as numbers of words, filled up with 0 to eighteen."""
    words = [WORDS.index(word) for word in chain(*clauses)]
    return torch.tensor(words + [0] * (18 - len(words)))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 16, padding_idx=0)
        self.window = nn.Conv1d(16, 32, kernel_size=3, padding=1)
        self.activation = nn.GELU()
        self.head = nn.Linear(32, 2)

    def forward(self, tokens):
        seen = self.activation(self.window(self.embedding(tokens).transpose(1, 2)))
        return self.head(seen.sum(2))


reviews = [review() for _ in range(2000)]
tokens = torch.stack([numbers(clauses) for clauses, _ in reviews])
praise = torch.tensor([int(sum(signs) > 0) for _, signs in reviews])


def some_reviews():
    chosen = torch.randint(len(tokens), (64,))
    return tokens[chosen], praise[chosen]


classifier = train(Classifier(), some_reviews, F.cross_entropy, steps=300, rate=5e-3)
sentence = "the plot was dull but the music seemed lovely and the ending was not bad".split()
cav = LayerCAV(classifier, "embedding", normalize=None)
of_words = cav.attribute(numbers([sentence])[None], target=1)[0].sum(1)
show_tokens(sentence, of_words[: len(sentence)], "praise", unit="logits")[0]

# %% [markdown]
# *dull* alone blames; *not bad* raised the score for praise, though *bad* alone would not. Verbs have a share too, for the
# network looks at three words at a time. Whether each clause gets the sign of its truth can be counted:

# %%
fresh = [review() for _ in range(200)]
right = total = 0
everything = cav.attribute(torch.stack([numbers(clauses) for clauses, _ in fresh]), target=1).sum(2)
for row, (clauses, signs) in zip(everything, fresh):
    start = 0
    for clause, sign in zip(clauses, signs):
        right += int(row[start : start + len(clause)].sum() * sign > 0)
        start += len(clause)
        total += 1
clauses_right = right / total
print(f"{right} of {total} clauses have the sign of what they say")

# %% [markdown]
# ## An LSTM
#
# A sequence of numbers, three of them marked; the answer is the sum of the marked ones. The truth could not be plainer: each
# marked number contributed itself, every other nothing. An LSTM's gates only weigh what passes, so they are constants, as
# softmax is in attention; contributions flow through the cells.


# %%
def sequences(count=64):
    values, marked = 2 * torch.rand(count, 20) - 1, torch.zeros(count, 20)
    marked.scatter_(1, torch.rand(count, 20).argsort(1)[:, :3], 1)
    return torch.stack([values, marked], 2), (values * marked).sum(1, keepdim=True)


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, sequence):
        return self.head(self.lstm(sequence)[0][:, -1])


adder = train(Adder(), sequences, F.mse_loss, steps=600, rate=1e-2)
sequence, answer = sequences(100)
lstm_error = (adder(sequence) - answer).abs().mean().item()
contributions, delta = InputCAV(adder, normalize=None).attribute(sequence, return_convergence_delta=True)
lstm_delta = delta.abs().max().item()
of_steps = contributions.sum(2)  # of the number and of its mark together
truth = sequence[..., 0] * sequence[..., 1]
lstm_correlation = torch.corrcoef(torch.stack([of_steps.flatten(), truth.flatten()]))[0, 1].item()
print(
    f"mean error {lstm_error:.2f}; contributions against the truth, 100 sequences: correlation {lstm_correlation:.2f}"
)
for step in sequence[0, :, 1].nonzero().flatten().tolist():
    print(f"step {step:2}, marked: the number {truth[0, step]:+.2f}, its contribution {of_steps[0, step]:+.2f}")
show_series(sequence[0, :, 0], of_steps[0], "the numbers; three are marked", unit="units")[0]

# %% [markdown]
# The three marked numbers, and hardly anything else. The contributions are somewhat larger than the numbers; the biases take
# the difference, for the network learned weights, not arithmetic.
#
# `verify` says of every operation whether it passes on what it is given, the steps of the LSTM included:

# %%
verification = verify(adder, sequence[:1])
print(verification)

# %% [markdown]
# ## A network that listens
#
# One second of noise with a sound in it: a rising whistle, a falling one, or clicks. A small convolutional network hears it as
# a spectrogram. Then two sounds are put into one second, first the rising, then the falling whistle.

# %%
RATE, LENGTH, SOUND = 8000, 8192, 2048
time = torch.arange(SOUND) / RATE


def whistle(low, high):
    phase = 2 * torch.pi * (low * time + (high - low) * time**2 / (2 * time[-1]))
    return torch.hann_window(SOUND) * phase.sin()


clicks = torch.zeros(SOUND)
clicks[256::512], clicks[257::512] = 6, -6
SOUNDS = [whistle(500, 3000), whistle(3000, 500), clicks]
HEARD = ["rising", "falling", "clicks"]


def second(*sounds_and_starts):
    """A second of noise with sounds in it, (kind, first sample) each, as a spectrogram (1, 129, 65)."""
    samples = 0.1 * torch.randn(LENGTH)
    for kind, start in sounds_and_starts:
        samples[start : start + SOUND] += SOUNDS[kind]
    spectrum = torch.stft(samples, 256, 128, window=torch.hann_window(256), return_complex=True)
    return torch.log1p(spectrum.abs() ** 2)[None]


def seconds(count=32):
    kinds, starts = torch.randint(3, (count,)), torch.randint(LENGTH - SOUND, (count,))
    return torch.stack([second(pair) for pair in zip(kinds.tolist(), starts.tolist())]), kinds


ear = nn.Sequential(
    *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU()),
    *(nn.Conv2d(8, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU()),
    *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
)
train(ear, seconds, F.cross_entropy, steps=120, rate=5e-3)
inputs, answers = seconds(200)
ear_accuracy = (ear(inputs).argmax(1) == answers).float().mean().item()
print(f"accuracy on new sounds: {ear_accuracy:.0%}")

two = second((0, 800), (1, 5000))
heard = {}
figure, columns = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
for kind, column in enumerate(columns):
    heard[kind] = LayerCAV(ear, "5", normalize=None).attribute(two[None], target=kind)[0].sum(0)
    axes = figure, column
    show_spectrogram(two[0], heard[kind], HEARD[kind], duration=LENGTH / RATE, unit="logits", axes=axes)

# %% [markdown]
# For *rising* the first whistle is red and the second one blue: it held the score down. For *falling* the second is red. Cut
# each of them out, and the scores say the same:

# %%
frames = (torch.arange(heard[0].shape[1]) + 0.5) * LENGTH / heard[0].shape[1]
first, last = (frames > 800) & (frames < 800 + SOUND), (frames > 5000) & (frames < 5000 + SOUND)
whole, only_first, only_last = (ear(one[None])[0].tolist() for one in (two, second((0, 800)), second((1, 5000))))
print(f"{'':10}{'score':>8}{'without the rising':>20}{'without the falling':>21}   contributions of rising, falling")
for kind in (0, 1):
    given = heard[kind][:, first].sum().item(), heard[kind][:, last].sum().item()
    print(f"{HEARD[kind]:10}{whole[kind]:+8.2f}{only_last[kind]:+20.2f}{only_first[kind]:+21.2f}", end="")
    print(f"{given[0]:+22.2f}, {given[1]:+.2f}")

# %% [markdown]
# Checks, so that this notebook cannot quietly go wrong:

# %%
# The transformer: each shape speaks for itself and against the other, and everything adds up.
assert vit_accuracy > 0.9
assert patches[0][on_cross].sum() > 0 > patches[0][on_frame].sum()
assert patches[1][on_frame].sum() > 0 > patches[1][on_cross].sum()
assert max(deltas) < 1e-4
assert abs(shares[-1][1]) < 1e-5 < abs(shares[0][1])
# The reviews: clauses have the sign of what they say.
assert clauses_right > 0.95
assert of_words[sentence.index("dull")] < 0 < of_words[sentence.index("lovely")]
assert of_words[sentence.index("not") :].sum() > 0
# The LSTM: contributions are the marked numbers.
assert lstm_correlation > 0.8
assert lstm_delta < 1e-4
assert verification.ok
# The ear: what was heard when.
assert ear_accuracy > 0.9
assert heard[0][:, first].sum() > max(0, heard[0][:, last].sum())
assert heard[1][:, last].sum() > max(0, heard[1][:, first].sum())
assert whole[0] > only_last[0]
assert only_last[1] > only_first[1]
