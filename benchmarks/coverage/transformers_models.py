"""Architectures of Hugging Face transformers, tiny and with random weights: nothing is downloaded.

Text models are explained by their input embeddings, the others by pixels, a waveform, a spectrogram or a series.

Left out: Reformer, which has no gradient outside training (its layers run without one, and refuse to run again), XGLM,
which cannot run in float64, and what needs packages of compiled kernels (DiNAT).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.coverage.problem import Problem
from benchmarks.coverage.randomise import SEED, randomised

VOCABULARY = 50
WIDTH = 32


class InDouble(TorchFunctionMode):
    """Lets a model that asks for float32 have float64, so that what it rounds is not taken for what a rule loses."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function with float64 in the place of float32."""
        func = torch.Tensor.double if func is torch.Tensor.float else func
        kwargs = {key: _wider(value) for key, value in (kwargs or {}).items()}
        return func(*map(_wider, args), **kwargs)


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits
    return logits.flatten(1)


def _next_token(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits
    return logits[:, -1]


def _output(name: str) -> Callable[[Any], torch.Tensor]:
    def read(output: Any) -> torch.Tensor:
        scores: torch.Tensor = output[name]
        return scores.flatten(1)

    return read


@dataclass(frozen=True)
class Kind:
    """How models of a kind are called.

    Attributes:
        suffix: what the names of their classes end in.
        argument: the one that is explained.
        size: of it; of text, samples and tokens.
        read: gives scores, (N, classes), of what the model returns.
        given: the other arguments, tensors as nested lists.
    """

    suffix: str
    argument: str = "inputs_embeds"
    size: Sequence[int] = (2, 6)
    read: Callable[[Any], torch.Tensor] = _logits
    given: Mapping[str, Any] = field(default_factory=dict)


CLASSIFIER = Kind("ForSequenceClassification")
CAUSAL = Kind("ForCausalLM", read=_next_token)
_DECODED = {"decoder_input_ids": [[2, 5, 7], [2, 9, 11]]}
SEQ2SEQ = Kind("ForConditionalGeneration", read=_next_token, given=_DECODED)
TRANSCRIBER = Kind("ForConditionalGeneration", "input_features", (2, 32, 8), read=_next_token, given=_DECODED)
IMAGE = Kind("ForImageClassification", "pixel_values", (1, 3, 32, 32))
LARGER_IMAGE = Kind("ForImageClassification", "pixel_values", (1, 3, 64, 64))
VIDEO = Kind("ForVideoClassification", "pixel_values", (1, 4, 3, 16, 16))
DEPTH = Kind("ForDepthEstimation", "pixel_values", (1, 3, 32, 32), read=_output("predicted_depth"))
CAPTIONED = Kind(
    "Model",
    "pixel_values",
    (1, 3, 32, 32),
    read=_output("logits_per_image"),
    given={"input_ids": [[1, 5, 7, 2], [1, 9, 11, 2]]},
)
WAVEFORM = Kind("ForSequenceClassification", "input_values", (2, 400))
SPECTROGRAM = Kind("ForAudioClassification", "input_features", (2, 8, 32))
FRAMES = Kind("ForAudioClassification", "input_values", (2, 16, 16))
SERIES = Kind("ForPrediction", "past_values", (2, 32, 3))


@dataclass(frozen=True)
class Case:
    """A model of a family.

    Attributes:
        name: what the names of its classes begin with, in most cases.
        kind: how it is called.
        arguments: of its configuration.
        model: name of the model's class.
        config: name of the configuration's class.
        size: of the inputs.
        given: the other arguments.
        read: gives scores, (N, classes), of what the model returns.
    """

    name: str
    kind: Kind
    arguments: Mapping[str, Any]
    model: str
    config: str
    size: Sequence[int]
    given: Mapping[str, Any]
    read: Callable[[Any], torch.Tensor]

    def build(self) -> Problem:
        """The model with random parameters, and inputs."""
        transformers = importlib.import_module("transformers")
        torch.manual_seed(SEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = getattr(transformers, self.config)(**self.arguments)
            model = randomised(getattr(transformers, self.model)(config))
        generator = torch.Generator().manual_seed(SEED)
        if self.kind.argument == "inputs_embeds" and len(self.size) == 2:
            ids = torch.randint(3, VOCABULARY, tuple(self.size), generator=generator)
            inputs = model.get_input_embeddings().weight.detach()[ids]  # type: ignore[operator]
        else:
            inputs = torch.randn(tuple(self.size), dtype=torch.float64, generator=generator)
        given = {name: torch.tensor(value) for name, value in self.given.items()}
        given = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}

        def score(explained: torch.Tensor) -> torch.Tensor:
            # Some models write into what they are given.
            with InDouble():
                return self.read(model(**{self.kind.argument: explained.clone()}, **given))

        with torch.no_grad():
            target = int(score(inputs).mean(0).argmax())
        return Problem(score, model, inputs, target)


def _case(
    name: str,
    kind: Kind,
    *shared: Mapping[str, Any],
    model: str = "",
    config: str = "",
    size: Sequence[int] = (),
    given: Mapping[str, Any] | None = None,
    read: Callable[[Any], torch.Tensor] | None = None,
    **arguments: Any,
) -> Case:
    """A case, with what it leaves open filled in from its kind."""
    merged = {key: value for part in (*shared, arguments) for key, value in part.items()}
    return Case(
        name,
        kind,
        merged,
        model or name + kind.suffix,
        config or f"{name}Config",
        size or kind.size,
        {**kind.given, **(given or {})},
        read or kind.read,
    )


_SMALL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LAYERS = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
#: As most configurations name it.
_TEXT = {**_SMALL, **_LAYERS, "max_position_embeddings": 64}
#: As GPT-2 and its kin name it.
_GPT = {**_SMALL, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}
#: As Llama and its kin name it, whose keys and values are shared between heads.
_LLAMA = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_SLIDING = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
#: The default implementation of experts takes no float64.
_MIXTURE = {**_LLAMA, "experts_implementation": "eager", "num_experts_per_tok": 2}
_EXPERTS = {**_MIXTURE, "num_experts": 4, "moe_intermediate_size": 24}
_LOCAL_EXPERTS = {**_MIXTURE, "num_local_experts": 4}
_ROUTED = {
    **_MIXTURE,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_MAMBA = {**_SMALL, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 4, "mamba_n_groups": 1}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_BART = {
    **_SMALL,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
_PATCHES = {**_LAYERS, "image_size": 32, "patch_size": 8}
_WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_STAGES = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [8, 16],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
}
_NECK = {"reassemble_factors": [4, 2, 1, 0.5], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
_TOWERS = {"text_config": _TEXT, "vision_config": _PATCHES, "projection_dim": 16}
_SPEECH = {
    **_TEXT,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}

# A case is a line or two, not one for each argument.
# fmt: off
ENCODERS = [
    _case("Bert", CLASSIFIER, _TEXT),
    _case("Roberta", CLASSIFIER, _TEXT),
    _case("XLMRobertaXL", CLASSIFIER, _TEXT),
    _case("RobertaPreLayerNorm", CLASSIFIER, _TEXT),
    _case("DistilBert", CLASSIFIER, _SMALL, dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=48),
    _case("Albert", CLASSIFIER, _TEXT, embedding_size=16),
    _case("Electra", CLASSIFIER, _TEXT, embedding_size=16),
    _case("Deberta", CLASSIFIER, _TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _case("DebertaV2", CLASSIFIER, _TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4,
          conv_kernel_size=3, norm_rel_ebd="layer_norm", share_att_key=True),
    _case("MPNet", CLASSIFIER, _TEXT),
    _case("Longformer", CLASSIFIER, _TEXT, attention_window=4, size=(2, 12),
          given={"global_attention_mask": [[1] + [0] * 11] * 2}),
    _case("BigBird", CLASSIFIER, _TEXT, attention_type="block_sparse", block_size=2, num_random_blocks=1, size=(2, 24)),
    _case("FNet", CLASSIFIER, _TEXT, tpu_short_seq_length=6),
    _case("Funnel", CLASSIFIER, vocab_size=VOCABULARY, d_model=WIDTH, n_head=4, d_head=8, d_inner=48,
          block_sizes=[1, 1], size=(2, 8)),
    _case("XLNet", CLASSIFIER, _SMALL, d_model=WIDTH, n_layer=2, n_head=4, d_inner=48),
    _case("ModernBert", CLASSIFIER, _TEXT, local_attention=4, global_attn_every_n_layers=2, cls_token_id=1,
          sep_token_id=2),
    _case("Nystromformer", CLASSIFIER, _TEXT, num_landmarks=4, segment_means_seq_len=8, conv_kernel_size=3,
          size=(2, 8)),
    _case("Mra", CLASSIFIER, _TEXT, size=(2, 64)),
    _case("Yoso", CLASSIFIER, _TEXT),
    _case("ConvBert", CLASSIFIER, _TEXT, embedding_size=WIDTH, conv_kernel_size=3, head_ratio=2),
    _case("SqueezeBert", CLASSIFIER, _TEXT, embedding_size=WIDTH),
    _case("MobileBert", CLASSIFIER, _TEXT, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    _case("RoFormer", CLASSIFIER, _TEXT, embedding_size=WIDTH),
    _case("RemBert", CLASSIFIER, _TEXT, input_embedding_size=16, output_embedding_size=16),
    _case("MegatronBert", CLASSIFIER, _TEXT),
    _case("IBert", CLASSIFIER, _TEXT),
    _case("NomicBert", CLASSIFIER, _TEXT),
    _case("EuroBert", CLASSIFIER, _LLAMA),
    _case("Esm", CLASSIFIER, _TEXT, mask_token_id=3, position_embedding_type="rotary"),
    _case("XLM", CLASSIFIER, vocab_size=VOCABULARY, n_words=VOCABULARY, emb_dim=WIDTH, n_layers=2, n_heads=4,
          pad_token_id=0),
    _case("Canine", CLASSIFIER, _TEXT, downsampling_rate=4, upsampling_kernel_size=3, local_transformer_stride=4,
          num_hash_buckets=16, size=(2, 8, WIDTH)),
    _case("LayoutLM", CLASSIFIER, _TEXT),
]

DECODERS = [
    _case("GPT2", CAUSAL, _GPT, model="GPT2LMHeadModel"),
    _case("OpenAIGPT", CAUSAL, _GPT, model="OpenAIGPTLMHeadModel"),
    _case("CTRL", CAUSAL, _GPT, model="CTRLLMHeadModel", dff=48),
    _case("GPTNeo", CAUSAL, _SMALL, hidden_size=WIDTH, num_layers=2, num_heads=4,
          attention_types=[[["global", "local"], 1]], window_size=4),
    _case("GPTNeoX", CAUSAL, _TEXT),
    _case("GPTNeoXJapanese", CAUSAL, _TEXT, intermediate_multiple_size=2),
    _case("GPTBigCode", CAUSAL, _GPT),
    _case("GPTJ", CAUSAL, _GPT, rotary_dim=4),
    _case("CodeGen", CAUSAL, _GPT, rotary_dim=4),
    _case("OPT", CAUSAL, _TEXT, ffn_dim=48, word_embed_proj_dim=WIDTH),
    _case("Bloom", CAUSAL, _SMALL, hidden_size=WIDTH, n_layer=2, n_head=4),
    _case("Mpt", CAUSAL, _SMALL, d_model=WIDTH, n_layers=2, n_heads=4, expansion_ratio=2),
    _case("Falcon", CAUSAL, _TEXT, new_decoder_architecture=True, num_kv_heads=2),
    _case("FalconAlibi", CAUSAL, _TEXT, model="FalconForCausalLM", config="FalconConfig", alibi=True),
    _case("Llama", CAUSAL, _LLAMA),
    _case("Mistral", CAUSAL, _LLAMA, sliding_window=3),
    _case("Qwen2", CAUSAL, _LLAMA),
    _case("Qwen3", CAUSAL, _LLAMA),
    _case("Gemma", CAUSAL, _LLAMA),
    _case("Gemma2", CAUSAL, _LLAMA, _SLIDING, query_pre_attn_scalar=8, attn_logit_softcapping=5.0,
          final_logit_softcapping=5.0),
    _case("Gemma3", CAUSAL, _LLAMA, _SLIDING, config="Gemma3TextConfig", query_pre_attn_scalar=8),
    _case("Gemma3n", CAUSAL, _LLAMA, _SLIDING, config="Gemma3nTextConfig", vocab_size_per_layer_input=VOCABULARY,
          hidden_size_per_layer_input=8, altup_num_inputs=2, laurel_rank=8, num_kv_shared_layers=0,
          activation_sparsity_pattern=[0.95, 0.0], intermediate_size=[48, 48]),
    _case("Phi", CAUSAL, _TEXT, qk_layernorm=True),
    _case("Phi3", CAUSAL, _LLAMA),
    _case("StableLm", CAUSAL, _LLAMA, qk_layernorm=True, use_parallel_residual=True),
    _case("Olmo", CAUSAL, _LLAMA, clip_qkv=1.0),
    _case("Olmo2", CAUSAL, _LLAMA),
    _case("Olmo3", CAUSAL, _LLAMA, _SLIDING),
    _case("Cohere", CAUSAL, _LLAMA, use_qk_norm=True),
    _case("Cohere2", CAUSAL, _LLAMA, sliding_window=3),
    _case("Persimmon", CAUSAL, _TEXT),
    _case("Starcoder2", CAUSAL, _LLAMA),
    _case("Glm4", CAUSAL, _LLAMA),
    _case("Granite", CAUSAL, _LLAMA),
    _case("Helium", CAUSAL, _LLAMA),
    _case("Nemotron", CAUSAL, _LLAMA),
    _case("Exaone4", CAUSAL, _LLAMA),
    _case("SmolLM3", CAUSAL, _LLAMA),
    _case("Arcee", CAUSAL, _LLAMA),
    _case("Apertus", CAUSAL, _LLAMA),
    _case("BitNet", CAUSAL, _LLAMA),
    _case("DiffLlama", CAUSAL, _LLAMA),
    _case("NanoChat", CAUSAL, _LLAMA),
    _case("Doge", CAUSAL, _LLAMA),
    _case("ModernBertDecoder", CAUSAL, _TEXT, local_attention=4, cls_token_id=1, sep_token_id=2),
    _case("BioGpt", CAUSAL, _TEXT),
    _case("MiniCPM3", CAUSAL, _LLAMA, _LATENT),
]

MIXTURES = [
    _case("Mixtral", CAUSAL, _LOCAL_EXPERTS),
    _case("Qwen2Moe", CAUSAL, _EXPERTS, shared_expert_intermediate_size=24),
    _case("Qwen3Moe", CAUSAL, _EXPERTS),
    _case("DeepseekV2", CAUSAL, _ROUTED, _LATENT, topk_method="greedy"),
    _case("DeepseekV3", CAUSAL, _ROUTED, _LATENT),
    _case("Olmoe", CAUSAL, _EXPERTS),
    _case("FlexOlmo", CAUSAL, _EXPERTS),
    _case("GptOss", CAUSAL, _LOCAL_EXPERTS, _SLIDING),
    _case("Phimoe", CAUSAL, _LOCAL_EXPERTS),
    _case("GraniteMoe", CAUSAL, _LOCAL_EXPERTS),
    _case("GraniteMoeShared", CAUSAL, _LOCAL_EXPERTS, shared_intermediate_size=24),
    _case("JetMoe", CAUSAL, _LOCAL_EXPERTS, kv_channels=8, num_attention_heads=2),
    _case("Dbrx", CAUSAL, _SMALL, d_model=WIDTH, n_heads=4, n_layers=2, max_seq_len=64, experts_implementation="eager",
          ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH},
          attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}),
    _case("Glm4Moe", CAUSAL, _ROUTED, use_qk_norm=True),
    _case("Dots1", CAUSAL, _ROUTED),
    _case("Ernie4_5_Moe", CAUSAL, _MIXTURE, moe_num_experts=4, moe_k=2, moe_intermediate_size=24,
          moe_layer_start_index=1, moe_num_shared_experts=1),
    _case("MiniMax", CAUSAL, _LOCAL_EXPERTS, block_size=4, layer_types=["linear_attention", "full_attention"]),
    _case("Llama4", CAUSAL, _LOCAL_EXPERTS, config="Llama4TextConfig", num_experts_per_tok=1, intermediate_size_mlp=48,
          attention_chunk_size=4, interleave_moe_layer_step=1, no_rope_layers=[1, 0],
          layer_types=["chunked_attention", "full_attention"]),
    _case("HunYuanMoEV1", CAUSAL, _MIXTURE, num_experts=4, moe_topk=2),
    _case("SwitchTransformers", SEQ2SEQ, _T5, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
          expert_capacity=8, num_decoder_layers=2),
    _case("NllbMoe", SEQ2SEQ, _BART, num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2, expert_capacity=8),
]

STATE_SPACES = [
    _case("Mamba", CAUSAL, _MAMBA),
    _case("FalconMamba", CAUSAL, _MAMBA),
    _case("Mamba2", CAUSAL, _MAMBA, num_heads=8, head_dim=8, n_groups=2, chunk_size=4),
    _case("RecurrentGemma", CAUSAL, _LLAMA, num_hidden_layers=3, lru_width=WIDTH, attention_window_size=4),
    _case("Jamba", CAUSAL, _EXPERTS, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
          expert_layer_offset=1, use_mamba_kernels=False, mamba_d_state=4, mamba_dt_rank=4),
    _case("Bamba", CAUSAL, _LLAMA, _MAMBA2, attn_layer_indices=[1]),
    _case("FalconH1", CAUSAL, _LLAMA, _MAMBA2, mamba_d_ssm=64),
    _case("GraniteMoeHybrid", CAUSAL, _LOCAL_EXPERTS, _MAMBA2, layer_types=["mamba", "attention"],
          shared_intermediate_size=24),
    _case("NemotronH", CAUSAL, _LLAMA, hybrid_override_pattern="M*-M", num_hidden_layers=4, mamba_num_heads=8,
          mamba_head_dim=8, ssm_state_size=4, chunk_size=4, n_groups=2),
    _case("Zamba", CAUSAL, _TEXT, num_key_value_heads=4, num_hidden_layers=4,
          layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"], mamba_d_state=4,
          mamba_dt_rank=4, n_mamba_heads=2),
    _case("Zamba2", CAUSAL, _TEXT, num_key_value_heads=4, num_hidden_layers=3,
          layers_block_type=["mamba", "hybrid", "mamba"], mamba_d_state=4, mamba_headdim=8, mamba_ngroups=1,
          n_mamba_heads=8, chunk_size=4, num_mem_blocks=1, adapter_rank=4),
    _case("Rwkv", CAUSAL, _SMALL, use_cache=False, hidden_size=WIDTH, num_hidden_layers=2, attention_hidden_size=WIDTH,
          intermediate_size=48),
    _case("xLSTM", CAUSAL, _SMALL, use_cache=False, hidden_size=WIDTH, num_hidden_layers=2, num_blocks=2, num_heads=2,
          chunk_size=4, qk_dim_factor=1.0, size=(2, 8)),
    _case("Qwen3Next", CAUSAL, _EXPERTS, _DELTA, shared_expert_intermediate_size=24),
    _case("OlmoHybrid", CAUSAL, _LLAMA, _DELTA),
    _case("KimiLinear", CAUSAL, _ROUTED, _LATENT, num_local_experts=4, q_lora_rank=None,
          layer_types=["linear_attention", "full_attention"], linear_head_dim=8, linear_num_heads=4),
    _case("Lfm2", CAUSAL, _LLAMA, layer_types=["conv", "full_attention"]),
]

ENCODER_DECODERS = [
    _case("T5", SEQ2SEQ, _T5),
    _case("MT5", SEQ2SEQ, _T5),
    _case("UMT5", SEQ2SEQ, _T5),
    _case("LongT5", SEQ2SEQ, _T5, local_radius=3, global_block_size=4, encoder_attention_type="transient-global",
          size=(2, 16)),
    _case("Bart", SEQ2SEQ, _BART),
    _case("MBart", SEQ2SEQ, _BART),
    _case("PLBart", SEQ2SEQ, _BART),
    _case("Pegasus", SEQ2SEQ, _BART),
    _case("PegasusX", SEQ2SEQ, _BART, num_global_tokens=2, block_size=4, size=(2, 8)),
    _case("BigBirdPegasus", SEQ2SEQ, _BART, block_size=2, num_random_blocks=1, size=(2, 24)),
    _case("Blenderbot", SEQ2SEQ, _BART),
    _case("LED", SEQ2SEQ, _BART, attention_window=4, max_encoder_position_embeddings=16, size=(2, 8)),
    _case("M2M100", SEQ2SEQ, _BART),
    _case("Marian", SEQ2SEQ, _BART, model="MarianMTModel"),
    _case("ProphetNet", SEQ2SEQ, vocab_size=VOCABULARY, hidden_size=WIDTH, num_encoder_layers=2, num_decoder_layers=2,
          num_encoder_attention_heads=4, num_decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
          max_position_embeddings=64, num_buckets=8, relative_max_distance=16),
    _case("FSMT", SEQ2SEQ, _BART, src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY, langs=["en", "de"]),
    _case("T5Gemma", SEQ2SEQ, encoder={**_LLAMA, **_SLIDING, "query_pre_attn_scalar": 8},
          decoder={**_LLAMA, **_SLIDING, "query_pre_attn_scalar": 8, "cross_attention_hidden_size": WIDTH},
          vocab_size=VOCABULARY),
]

VISION = [
    _case("ViT", IMAGE, _PATCHES),
    _case("DeiT", IMAGE, _PATCHES, model="DeiTForImageClassificationWithTeacher"),
    _case("ViTMSN", IMAGE, _PATCHES),
    _case("IJepa", IMAGE, _PATCHES),
    _case("Beit", IMAGE, _PATCHES, use_relative_position_bias=True, out_indices=[1, 2]),
    _case("Data2VecVision", IMAGE, _PATCHES, use_shared_relative_position_bias=True),
    _case("Dinov2", IMAGE, _PATCHES, use_swiglu_ffn=True),
    _case("Dinov2WithRegisters", IMAGE, _PATCHES),
    _case("Swin", IMAGE, _WINDOWS),
    _case("Swinv2", IMAGE, _WINDOWS),
    _case("DonutSwin", IMAGE, _WINDOWS),
    _case("ConvNext", IMAGE, hidden_sizes=[8, 16], depths=[2, 2], num_stages=2),
    _case("ConvNextV2", IMAGE, hidden_sizes=[8, 16], depths=[2, 2], num_stages=2),
    _case("Segformer", IMAGE, _STAGES),
    _case("SegformerDense", IMAGE, _STAGES, model="SegformerForSemanticSegmentation", config="SegformerConfig",
          decoder_hidden_size=16),
    _case("Pvt", IMAGE, _STAGES, image_size=32, sequence_reduction_ratios=[2, 1], patch_sizes=[4, 2], num_labels=2),
    _case("PvtV2", IMAGE, _STAGES, image_size=32),
    _case("PvtV2Linear", IMAGE, _STAGES, model="PvtV2ForImageClassification", config="PvtV2Config",
          linear_attention=True),
    _case("MobileViT", LARGER_IMAGE, image_size=64, hidden_sizes=[16, 24, 32],
          neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], num_attention_heads=4),
    _case("MobileViTV2", LARGER_IMAGE, image_size=64, width_multiplier=0.25),
    _case("PoolFormer", LARGER_IMAGE, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16]),
    _case("Hiera", IMAGE, image_size=[32, 32], patch_size=[7, 7], patch_stride=[4, 4], patch_padding=[3, 3],
          embed_dim=16, depths=[1, 1], num_heads=[1, 2], masked_unit_size=[4, 4], query_stride=[2, 2], num_query_pool=1,
          masked_unit_attention=[True, False]),
    _case("Levit", LARGER_IMAGE, image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 3, 4],
          depths=[1, 1, 1], key_dim=[8, 8, 8]),
    _case("ResNet", IMAGE, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1]),
    _case("RegNet", IMAGE, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8),
    _case("Bit", IMAGE, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_groups=4),
    _case("FocalNet", IMAGE, image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], focal_levels=[2, 2],
          focal_windows=[3, 3], use_layerscale=True),
    _case("Cvt", IMAGE, patch_sizes=[7, 3], patch_stride=[4, 2], patch_padding=[2, 1], embed_dim=[8, 16],
          num_heads=[1, 2], depth=[1, 2], mlp_ratio=[2.0, 2.0], cls_token=[False, True]),
    _case("EfficientNet", LARGER_IMAGE, image_size=64, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320),
    _case("MobileNetV1", LARGER_IMAGE, image_size=64, depth_multiplier=0.25),
    _case("MobileNetV2", LARGER_IMAGE, image_size=64, depth_multiplier=0.25),
    _case("SwiftFormer", LARGER_IMAGE, image_size=64, depths=[1, 1, 1, 1], embed_dims=[16, 16, 32, 32]),
    _case("HGNetV2", LARGER_IMAGE, embedding_size=8, stem_channels=[3, 8, 8], hidden_sizes=[16, 16, 32, 32],
          depths=[1, 1, 1, 1], stage_in_channels=[8, 16, 16, 32], stage_mid_channels=[8, 8, 8, 8],
          stage_out_channels=[16, 16, 32, 32], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[2, 2, 2, 2]),
    _case("TextNet", LARGER_IMAGE),
    _case("PPLCNet", LARGER_IMAGE, read=_output("last_hidden_state"), scale=0.25),
    _case("ImageGPT", CLASSIFIER, model="ImageGPTForImageClassification", vocab_size=VOCABULARY, n_embd=WIDTH,
          n_layer=2, n_head=4, n_positions=16, size=(2, 16)),
    _case("Perceiver", IMAGE, model="PerceiverForImageClassificationLearned", num_latents=4, d_latents=16,
          num_self_attends_per_block=2, num_self_attention_heads=4, num_cross_attention_heads=1, image_size=16,
          size=(1, 3, 16, 16)),
    _case("DPT", DEPTH, _PATCHES, _NECK, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False),
    _case("GLPN", DEPTH, size=(1, 3, 64, 64), depths=[1, 1, 1, 1], sr_ratios=[2, 2, 1, 1], hidden_sizes=[8, 8, 16, 16],
          num_attention_heads=[1, 1, 2, 2], mlp_ratios=[2, 2, 2, 2], decoder_hidden_size=8),
    _case("DepthAnything", DEPTH, _NECK, patch_size=8, reassemble_hidden_size=WIDTH, depth_estimation_type="metric",
          backbone_config={**_PATCHES, "model_type": "dinov2", "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4],
                           "reshape_hidden_states": False}),
    _case("Yolos", IMAGE, _PATCHES, model="YolosForObjectDetection", image_size=[32, 32], num_detection_tokens=4),
    _case("Detr", IMAGE, _BART, model="DetrForObjectDetection", num_queries=4,
          backbone_config={"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1],
                           "out_features": ["stage2"]}),
    _case("Swin2SR", IMAGE, _WINDOWS, model="Swin2SRForImageSuperResolution", read=_output("reconstruction"),
          image_size=16, patch_size=1, size=(1, 3, 8, 8)),
    _case("VideoMAE", VIDEO, _PATCHES, image_size=16, num_frames=4),
    _case("Timesformer", VIDEO, _PATCHES, image_size=16, num_frames=4),
    _case("Vivit", VIDEO, _LAYERS, image_size=16, num_frames=4, tubelet_size=[2, 8, 8]),
]

AUDIO = [
    _case("Wav2Vec2", WAVEFORM, _SPEECH),
    _case("Wav2Vec2Stable", WAVEFORM, _SPEECH, model="Wav2Vec2ForSequenceClassification", config="Wav2Vec2Config",
          do_stable_layer_norm=True, feat_extract_norm="layer"),
    _case("Wav2Vec2Conformer", WAVEFORM, _SPEECH, position_embeddings_type="relative", conv_depthwise_kernel_size=3),
    _case("Hubert", WAVEFORM, _SPEECH),
    _case("WavLM", WAVEFORM, _SPEECH, num_buckets=8),
    _case("UniSpeechSat", WAVEFORM, _SPEECH, use_weighted_layer_sum=True),
    _case("SEW", WAVEFORM, _SPEECH, squeeze_factor=2),
    _case("SEWD", WAVEFORM, _SPEECH, squeeze_factor=2, position_buckets=4),
    _case("Data2VecAudio", WAVEFORM, _SPEECH, conv_pos_kernel_size=3, num_conv_pos_embeddings=2),
    _case("Wav2Vec2Bert", SPECTROGRAM, _TEXT, model="Wav2Vec2BertForSequenceClassification",
          feature_projection_input_dim=32, conv_depthwise_kernel_size=3, classifier_proj_size=16),
    _case("AST", FRAMES, _LAYERS, patch_size=8, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=16),
    _case("Whisper", SPECTROGRAM, _BART, num_mel_bins=8, max_source_positions=16, max_target_positions=16,
          classifier_proj_size=16),
    _case("Speech2Text", TRANSCRIBER, _BART, input_feat_per_channel=8, conv_channels=16, max_source_positions=64,
          max_target_positions=16),
]

MULTIMODAL = [
    _case("CLIP", CAPTIONED, _TOWERS),
    _case("CLIPVision", IMAGE, _TOWERS, model="CLIPForImageClassification", config="CLIPConfig"),
    _case("Siglip", CAPTIONED, _TOWERS),
    _case("ChineseCLIP", CAPTIONED, _TOWERS),
    _case("Blip", CAPTIONED, _TOWERS),
    _case("Vilt", IMAGE, _TEXT, _PATCHES, model="ViltForQuestionAnswering", given={"input_ids": [[1, 5, 7, 2]]}),
    _case("VisualBert", CLASSIFIER, _TEXT, model="VisualBertForQuestionAnswering", visual_embedding_dim=16,
          given={"attention_mask": [[1] * 6] * 2}),
]

SERIES_MODELS = [
    _case("PatchTST", SERIES, model="PatchTSTForPrediction", read=_output("prediction_outputs"), num_input_channels=3,
          context_length=32, patch_length=8, patch_stride=8, d_model=WIDTH, num_hidden_layers=2, ffn_dim=48,
          prediction_length=4, loss="mse"),
    _case("PatchTSMixer", SERIES, model="PatchTSMixerForPrediction", read=_output("prediction_outputs"),
          num_input_channels=3, context_length=32, d_model=16, num_layers=2, prediction_length=4),
]

# fmt: on
_CASES = (
    *ENCODERS,
    *DECODERS,
    *MIXTURES,
    *STATE_SPACES,
    *ENCODER_DECODERS,
    *VISION,
    *AUDIO,
    *MULTIMODAL,
    *SERIES_MODELS,
)
CASES: dict[str, Case] = {case.name: case for case in _CASES}


def cases() -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Name and builder of each."""
    for name, case in CASES.items():
        yield name, case.build
