"""Networks of timm and transformers, unmodified, at small sizes with random weights."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV

pytestmark = pytest.mark.slow

TIMM = (
    "resnet26d seresnet18 efficientnet_b0 tf_efficientnet_lite0 mobilenetv3_small_050 regnetx_002 dpn48b convnext_atto "
    "vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 mixer_s32_224 xcit_nano_12_p16_224 poolformer_s12 "
    "resmlp_12_224 ghostnet_050 hardcorenas_a res2net50_14w_8s skresnet18 repvgg_a0 vovnet39a"
).split()

TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TRANSFORMERS = {
    "BertForSequenceClassification": ("BertConfig", TINY),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig",
        {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "GPT2ForSequenceClassification": (
        "GPT2Config",
        {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0},
    ),
    "LlamaForSequenceClassification": ("LlamaConfig", {**TINY, "num_key_value_heads": 2, "pad_token_id": 0}),
    "Qwen3ForSequenceClassification": (
        "Qwen3Config",
        {**TINY, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
    ),
}


def randomised(net: nn.Module) -> nn.Module:
    """Evaluation mode, float64, biases and zero-initialised layers random, norms' scales about 1."""
    torch.manual_seed(0)
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or not parameter.any():
                nn.init.normal_(parameter, std=0.1)
            elif "norm" in type(module).__name__.lower() and parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return net.double().eval()


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    net = randomised(importlib.import_module("timm").create_model(name, num_classes=10))
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    target = int(net(x).argmax(1))
    ratios, delta = InputCAV(net).attribute(x, target, return_convergence_delta=True)
    assert ratios.abs().sum() > 1e-6
    assert delta.abs().item() < 1e-8


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    transformers = importlib.import_module("transformers")
    config, arguments = TRANSFORMERS[name]
    torch.manual_seed(0)
    net = randomised(getattr(transformers, name)(getattr(transformers, config)(**arguments)))
    ids = torch.tensor([[5, 7, 9, 11, 13, 2], [1, 3, 5, 7, 9, 11]])
    ratios, delta = LayerCAV(lambda x: net(x).logits, net.get_input_embeddings()).attribute(
        ids, 1, return_convergence_delta=True
    )
    assert ratios.shape == (2, 6, 32)
    assert ratios.abs().sum() > 1e-6
    assert delta.abs().max() < 1e-8
