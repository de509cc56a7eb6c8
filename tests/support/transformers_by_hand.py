"""Transformers written out in plain torch, with the gradient modified by hand as AttnLRP and CP-LRP say.

Nothing of the package is used here. Each function computes a model of transformers from its parameters. The value of
each step is the model's value, and its gradient carries contributions, so that contributions are input x gradient.

AttnLRP: Achtibat et al. 2024. CP-LRP: Ali et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

#: Of the epsilon rule, as the presets set it.
EPSILON = 1e-6

Tensor: TypeAlias = torch.Tensor


def times(value: Tensor, factor: Tensor | float) -> Tensor:
    """The value unchanged; its gradient times a constant factor."""
    factor = factor.detach() if isinstance(factor, Tensor) else factor
    return value.detach() + factor * (value - value.detach())


def affine(y: Tensor) -> Tensor:
    """The output of an affine layer by the epsilon rule: R_i = sum_j z_ij / (y_j + epsilon sign(y_j)) R_j."""
    return times(y, y / (y + EPSILON * y.sign()))


def linear(x: Tensor, layer: Any) -> Tensor:
    return affine(F.linear(x, layer.weight, layer.bias))


def activation(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Each output's contribution goes to its own input."""
    return x * (function(x) / x).detach()


def layer_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """The mean is linear, the deviation a constant."""
    deviation = (x.var(-1, correction=0, keepdim=True) + layer.eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / deviation.detach() * layer.weight + layer.bias


def rms_norm(x: Tensor, layer: Any) -> Tensor:
    """The root mean square is a constant."""
    return x / (x.square().mean(-1, keepdim=True) + layer.variance_epsilon).sqrt().detach() * layer.weight


@dataclass(frozen=True)
class Method:
    """What AttnLRP and CP-LRP do differently.

    Attributes:
        preset: the name of the preset.
        carry: whether attention weights and gates carry contributions. Each factor of a product then takes half.
    """

    preset: str
    carry: bool

    def weighted(self, gate: Tensor, x: Tensor, product: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> Tensor:
        """A gate times what the gate weighs."""
        return times(product(gate, x), 0.5) if self.carry else product(gate.detach(), x)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Of heads, (N, heads, tokens, width); the softmax passes its derivative on."""
        scores = times(q @ k.transpose(-2, -1), 0.5) / math.sqrt(q.shape[-1])
        if causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~seen, -math.inf)
        exponentials = (scores - scores.amax(-1, keepdim=True).detach()).exp()
        return self.weighted(exponentials / exponentials.sum(-1, keepdim=True), v, torch.matmul)


METHODS = (Method("attnlrp", carry=True), Method("cp_lrp", carry=False))


def heads(x: Tensor, width: int) -> Tensor:
    """(N, tokens, heads * width) as (N, heads, tokens, width)."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def rotated(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary embedding, which is linear."""
    angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype), frequencies).repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


#: The scores, (N, classes), and the hidden states before the first block and after each block.
Computed: TypeAlias = tuple[Tensor, list[Tensor]]


def llama(model: Any, x: Tensor, method: Method) -> Computed:
    """Llama, Qwen 2 and 3, and Mixtral."""
    inner, width = model.model, model.config.head_dim
    states = [x]
    for block in inner.layers:
        attention, y = block.self_attn, rms_norm(x, block.input_layernorm)
        q, k, v = (heads(linear(y, layer), width) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
        if hasattr(attention, "q_norm"):
            q, k = rms_norm(q, attention.q_norm), rms_norm(k, attention.k_norm)
        frequencies = inner.rotary_emb.inv_freq
        q, k = rotated(q, frequencies), rotated(k, frequencies)
        shared = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        x = x + linear(joined(method.attention(q, k, v, causal=True)), attention.o_proj)
        y, mlp = rms_norm(x, block.post_attention_layernorm), block.mlp
        if hasattr(mlp, "experts"):
            x = x + mixture(y.flatten(0, 1), mlp, method).reshape(x.shape)
        else:
            gate = activation(F.silu, linear(y, mlp.gate_proj))
            x = x + linear(method.weighted(gate, linear(y, mlp.up_proj)), mlp.down_proj)
        states.append(x)
    return linear(rms_norm(x, inner.norm)[:, -1], model.lm_head), states


def mixture(x: Tensor, mlp: Any, method: Method) -> Tensor:
    """The two best experts of each token, (tokens, width), weighed by the softmax of their two logits."""
    logits, chosen = affine(F.linear(x, mlp.gate.weight)).topk(mlp.top_k)
    exponentials = (logits - logits.amax(-1, keepdim=True).detach()).exp()
    weights = exponentials / exponentials.sum(-1, keepdim=True)
    rows = []
    for token in range(len(x)):
        parts = []
        for place, expert in enumerate(chosen[token].tolist()):
            gate, up = affine(F.linear(x[token], mlp.experts.gate_up_proj[expert])).chunk(2, -1)
            hidden = method.weighted(activation(F.silu, gate), up)
            down = affine(F.linear(hidden, mlp.experts.down_proj[expert]))
            parts.append(method.weighted(weights[token, place], down))
        rows.append(sum(parts))
    return torch.stack(rows)


def gpt2(model: Any, x: Tensor, method: Method) -> Computed:
    inner, width = model.transformer, model.config.n_embd // model.config.n_head
    states = [x]
    x = x + inner.wpe.weight[: x.shape[1]]

    def dense(x: Tensor, layer: Any) -> Tensor:
        return affine(x @ layer.weight + layer.bias)

    for block in inner.h:
        q, k, v = (heads(part, width) for part in dense(layer_norm(x, block.ln_1), block.attn.c_attn).chunk(3, -1))
        x = x + dense(joined(method.attention(q, k, v, causal=True)), block.attn.c_proj)
        hidden = dense(layer_norm(x, block.ln_2), block.mlp.c_fc)
        x = x + dense(activation(lambda y: F.gelu(y, approximate="tanh"), hidden), block.mlp.c_proj)
        states.append(x)
    return linear(layer_norm(x, inner.ln_f)[:, -1], model.lm_head), states


def bert(model: Any, x: Tensor, method: Method) -> Computed:
    inner, width = model.bert, model.config.hidden_size // model.config.num_attention_heads
    states, given = [x], inner.embeddings
    constants = given.position_embeddings.weight[: x.shape[1]] + given.token_type_embeddings.weight[0]
    x = layer_norm(x + constants, given.LayerNorm)
    for block in inner.encoder.layer:
        attention = block.attention.self
        q, k, v = (heads(linear(x, layer), width) for layer in (attention.query, attention.key, attention.value))
        attended = linear(joined(method.attention(q, k, v, causal=False)), block.attention.output.dense)
        x = layer_norm(x + attended, block.attention.output.LayerNorm)
        hidden = activation(F.gelu, linear(x, block.intermediate.dense))
        x = layer_norm(x + linear(hidden, block.output.dense), block.output.LayerNorm)
        states.append(x)
    pooled = activation(torch.tanh, linear(x[:, 0], inner.pooler.dense))
    return linear(pooled, model.classifier), states


def vit(model: Any, x: Tensor, method: Method) -> Computed:
    inner, width = model.vit, model.config.hidden_size // model.config.num_attention_heads
    states, embeddings = [x], inner.embeddings
    patches = embeddings.patch_embeddings.projection
    x = affine(F.conv2d(x, patches.weight, patches.bias, patches.stride)).flatten(2).transpose(1, 2)
    x = torch.cat([embeddings.cls_token.expand(len(x), -1, -1), x], 1) + embeddings.position_embeddings
    for block in inner.layers:
        attention, y = block.attention, layer_norm(x, block.layernorm_before)
        q, k, v = (heads(linear(y, layer), width) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
        x = x + linear(joined(method.attention(q, k, v, causal=False)), attention.o_proj)
        hidden = activation(F.gelu, linear(layer_norm(x, block.layernorm_after), block.mlp.fc1))
        x = x + linear(hidden, block.mlp.fc2)
        states.append(x)
    return linear(layer_norm(x, inner.layernorm)[:, 0], model.classifier), states


@dataclass(frozen=True)
class Reference:
    """A model by hand.

    Attributes:
        compute: gives scores and hidden states.
        blocks: gives the modules whose outputs are the hidden states after the first one.
    """

    compute: Callable[[Any, Tensor, Method], Computed]
    blocks: Callable[[Any], Sequence[nn.Module]]

    def contributions(self, model: nn.Module, x: Tensor, target: int, method: Method) -> tuple[Tensor, list[Tensor]]:
        """The scores, and the contributions of the inputs and of each block's outputs to the score of a class."""
        x = x.clone().requires_grad_()
        scores, states = self.compute(model, x, method)
        gradients = torch.autograd.grad(scores[:, target].sum(), states)
        parts = [(state * gradient).detach() for state, gradient in zip(states, gradients, strict=True)]
        return scores.detach(), parts


_LLAMA = Reference(llama, lambda model: model.model.layers)

#: By the names of the coverage benchmark.
REFERENCES: dict[str, Reference] = {
    "Llama": _LLAMA,
    "Qwen2": _LLAMA,
    "Qwen3": _LLAMA,
    "Mixtral": _LLAMA,
    "GPT2": Reference(gpt2, lambda model: model.transformer.h),
    "Bert": Reference(bert, lambda model: model.bert.encoder.layer),
    "ViT": Reference(vit, lambda model: model.vit.layers),
}
