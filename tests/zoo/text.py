"""transformers: language models."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .entry import Entry, tokens
from .of_transformers import entries

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "shared_expert_intermediate_size": 16,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
BART = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1,
        "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip

DECODERS = """
    ApertusForCausalLM ArceeForCausalLM BertLMHeadModel BertGenerationDecoder BioGptForCausalLM
    BitNetForCausalLM BloomForCausalLM CohereForCausalLM Cohere2ForCausalLM CTRLLMHeadModel
    DiffLlamaForCausalLM DogeForCausalLM Ernie4_5ForCausalLM Exaone4ForCausalLM FalconMambaForCausalLM
    GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM GlmForCausalLM Glm4ForCausalLM GPT2LMHeadModel
    GPTBigCodeForCausalLM GPTNeoXForCausalLM GPTNeoXJapaneseForCausalLM GraniteForCausalLM
    HeliumForCausalLM HunYuanDenseV1ForCausalLM Lfm2ForCausalLM LlamaForCausalLM MambaForCausalLM
    MegatronBertForCausalLM MinistralForCausalLM MistralForCausalLM ModernBertDecoderForCausalLM
    MptForCausalLM NanoChatForCausalLM NemotronForCausalLM OlmoForCausalLM Olmo2ForCausalLM
    Olmo3ForCausalLM OpenAIGPTLMHeadModel PersimmonForCausalLM PhiForCausalLM Phi3ForCausalLM
    Qwen2ForCausalLM Qwen3ForCausalLM RwkvForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM
    StableLmForCausalLM Starcoder2ForCausalLM VaultGemmaForCausalLM XGLMForCausalLM XLMWithLMHeadModel
"""
EXPERT_DECODERS = """
    FlexOlmoForCausalLM GptOssForCausalLM GraniteMoeForCausalLM HunYuanMoEV1ForCausalLM JetMoeForCausalLM
    MiniMaxForCausalLM MixtralForCausalLM OlmoeForCausalLM PhimoeForCausalLM Qwen2MoeForCausalLM
    Qwen3MoeForCausalLM Ernie4_5_MoeForCausalLM Glm4MoeForCausalLM MiniMaxM2ForCausalLM
"""
ENCODERS = """
    AlbertForMaskedLM BertForMaskedLM BigBirdForMaskedLM CamembertForMaskedLM ConvBertForMaskedLM
    Data2VecTextForMaskedLM DebertaForMaskedLM DebertaV2ForMaskedLM DistilBertForMaskedLM
    ElectraForMaskedLM ErnieForMaskedLM EsmForMaskedLM EuroBertForMaskedLM FlaubertWithLMHeadModel
    FNetForMaskedLM IBertForMaskedLM LayoutLMForMaskedLM LongformerForMaskedLM ModernBertForMaskedLM
    MPNetForMaskedLM MraForMaskedLM NystromformerForMaskedLM RemBertForMaskedLM RobertaForMaskedLM
    RobertaPreLayerNormForMaskedLM RoFormerForMaskedLM TapasForMaskedLM XLMRobertaForMaskedLM
    XLMRobertaXLForMaskedLM YosoForMaskedLM
"""
TRANSLATORS = """
    BartForConditionalGeneration BigBirdPegasusForConditionalGeneration BlenderbotForConditionalGeneration
    BlenderbotSmallForConditionalGeneration LEDForConditionalGeneration M2M100ForConditionalGeneration
    MarianMTModel MBartForConditionalGeneration MvpForConditionalGeneration
    PegasusForConditionalGeneration PegasusXForConditionalGeneration PLBartForConditionalGeneration
"""
T5S = """
    LongT5ForConditionalGeneration MT5ForConditionalGeneration T5ForConditionalGeneration
    UMT5ForConditionalGeneration
"""


def both(vocabulary: int = 96) -> dict[str, Any]:
    return tokens(vocabulary, decoder_input_ids=torch.randint(3, vocabulary, (2, 7)))


OTHERS = {
    "AltCLIPTextModel": {"project_dim": 32},
    "BambaForCausalLM": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16,
        "attn_layer_indices": [1]},
    "CodeGenForCausalLM": {"rotary_dim": 4},
    "DeepseekV2ForCausalLM": {**EXPERTS, **LATENT, "topk_method": "greedy", "num_key_value_heads": 4},
    "DeepseekV3ForCausalLM": {**EXPERTS, **LATENT, "num_key_value_heads": 4},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16},
    "FunnelForMaskedLM": {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64,
        "num_hidden_layers": ...},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "GPTNeoForCausalLM": {"num_layers": 2, "attention_types": [[["global", "local"], 1]],
        "num_hidden_layers": ...},
    "GraniteMoeHybridForCausalLM": {**EXPERTS, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16,
                                    "layer_types": ["mamba", "attention"]},
    "JambaForCausalLM": {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8,
        "use_mamba_kernels": False},
    "LukeForMaskedLM": {"entity_vocab_size": 20, "entity_emb_size": 32},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1},
    "MiniCPM3ForCausalLM": {**LATENT, "num_key_value_heads": 4, "head_dim": ...},
    "MobileBertForMaskedLM": {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "NemotronHForCausalLM": {"layer_types": ["mamba", "attention"], "mamba_num_heads": 8,
        "mamba_head_dim": 8, "ssm_state_size": 16, "n_groups": 2},
    "OPTForCausalLM": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "Qwen3NextForCausalLM": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
                             "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                                 "linear_value_head_dim": 8},
    "Qwen3_5ForCausalLM": {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                             "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                                 "linear_value_head_dim": 8},
    "RecurrentGemmaForCausalLM": {"lru_width": 32, "block_types": ["recurrent", "attention"],
        "num_key_value_heads": 1},
    "RoCBertForMaskedLM": {"pronunciation_vocab_size": 96, "shape_vocab_size": 96,
        "pronunciation_embed_dim": 16, "shape_embed_dim": 16},
    "SqueezeBertForMaskedLM": {"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2,
        "post_attention_groups": 1,
                               "intermediate_groups": 2, "output_groups": 2},
    "XLNetLMHeadModel": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64,
        "max_position_embeddings": ..., "hidden_size": ...,
                         "num_hidden_layers": ..., "num_attention_heads": ...},
    "XmodForMaskedLM": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip
AXIAL = {
    "attention_head_size": 8, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [4, 16],
        "hidden_size": 32, "feed_forward_size": 64,
    "vocab_size": 96, "num_attention_heads": 4, "lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4,
        "num_buckets": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "num_hashes": 2, "attn_layers": ["local", "lsh"],
        "is_decoder": False, "hash_seed": 0,
}  # fmt: skip

TABLE: dict[str, Entry] = {
    **entries(DECODERS, SMALL, tokens),
    **entries(EXPERT_DECODERS, {**SMALL, **EXPERTS}, tokens, chooses=True),
    **entries(ENCODERS, SMALL, tokens),
    **entries(OTHERS, SMALL, tokens),
    **entries({"FalconForCausalLM": {"head_dim": ...}, "DbrxForCausalLM": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "attn_config": {"kv_n_heads": 2,
            "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2,
            "ffn_act_fn": {"name": "silu"}}, "head_dim": ...,
        "hidden_size": ..., "num_hidden_layers": ..., "num_attention_heads": ...,
            "max_position_embeddings": ..., "num_key_value_heads": ...,
    }}, SMALL, tokens, chooses=True),
    **entries({"ReformerForMaskedLM": AXIAL}, {}, partial(tokens, length=16), chooses=True),
    **entries(TRANSLATORS, BART, both),
    **entries(T5S, T5, both),
    **entries({"SwitchTransformersForConditionalGeneration": {"num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1, "num_experts": 4},
               "NllbMoeForConditionalGeneration": {**BART, "num_experts": 4, "encoder_sparse_step": 1,
                   "decoder_sparse_step": 1}}, T5, both, chooses=True),
    **entries({"FSMTForConditionalGeneration": {"src_vocab_size": 96, "tgt_vocab_size": 96, "langs": ["en",
        "de"]}}, BART, both),
    **entries({"ProphetNetForConditionalGeneration": {"hidden_size": 32, "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4}}, {k: v for k,
            v in BART.items() if k not in ("encoder_layers", "decoder_layers")}, both),
}  # fmt: skip
