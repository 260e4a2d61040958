"""transformers: models of speech, music and other series."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .entry import Entry
from .of_transformers import entries

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 32,
    "pad_token_id": 0,
    "num_labels": 5,
}
WAVES = {
    **SMALL, "conv_dim": [16, 16], "conv_stride": [4, 4], "conv_kernel": [8, 4],
        "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16,
        "num_codevectors_per_group": 8,
    "codevector_dim": 16, "proj_codevector_dim": 16,
}  # fmt: skip
SPEECH = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2,
}  # fmt: skip
BARK = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 4,
    "block_size": 64,
    "input_vocab_size": 96,
    "output_vocab_size": 96,
}
MUSIC = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
        "num_codebooks": 2,
    "pad_token_id": 0, "bos_token_id": 0,
}  # fmt: skip


def wave(length: int = 400) -> dict[str, Any]:
    return {"input_values": torch.randn(2, length)}


def channel(length: int = 400) -> dict[str, Any]:
    return {"input_values": torch.randn(2, 1, length)}


def features(*shape: int, name: str = "input_features") -> dict[str, Any]:
    return {name: torch.randn(2, *shape)}


def spoken(*shape: int) -> dict[str, Any]:
    return {"input_features": torch.randn(2, *shape), "decoder_input_ids": torch.randint(3, 96, (2, 7))}


def codes() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 32, (4, 9))}


def ids() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 96, (2, 9))}


WAVE_MODELS = """
    Data2VecAudioForCTC HubertForCTC SEWForCTC SEWDForCTC UniSpeechForCTC UniSpeechSatForCTC
    Wav2Vec2ForCTC Wav2Vec2ConformerForCTC WavLMForCTC
"""

TABLE: dict[str, Entry] = {
    **entries(WAVE_MODELS, {**WAVES, "squeeze_factor": 1, "position_embeddings_type": "relative"}, wave),
    **entries({"Wav2Vec2BertForCTC": {"feature_projection_input_dim": 16}}, WAVES, partial(features, 9,
        16)),
    **entries({"ASTForAudioClassification": {"patch_size": 8, "frequency_stride": 8, "time_stride": 8,
        "max_length": 16, "num_mel_bins": 16}},
              SMALL, partial(features, 16, 16, name="input_values")),
    **entries({"WhisperForConditionalGeneration": {"num_mel_bins": 16, "max_source_positions": 16,
        "max_target_positions": 32, "suppress_tokens": None,
                                                   "begin_suppress_tokens": None}}, SPEECH, partial(spoken,
                                                       16, 32)),
    **entries({"Speech2TextForConditionalGeneration": {"input_feat_per_channel": 16, "conv_channels": 32,
        "max_source_positions": 64,
                                                       "max_target_positions": 32}}, SPEECH,
                                                           partial(spoken, 32, 16)),
    **entries({"MoonshineForConditionalGeneration": {}}, {**SMALL, "vocab_size": 96,
        "encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1,
               "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
                   "max_position_embeddings": 64, "decoder_start_token_id": 1,
               "bos_token_id": 1, "eos_token_id": 2},
               lambda: {"input_values": torch.randn(2, 1200), "decoder_input_ids": torch.randint(3, 96, (2,
                   7))}),
    **entries({"SpeechT5ForSpeechToText": {"hidden_size": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
               "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 96}}, {**WAVES},
                   lambda: {"input_values": torch.randn(2, 400),
               "decoder_input_ids": torch.randint(3, 96, (2, 7))}),
    **entries("BarkSemanticModel BarkCoarseModel", BARK, ids, generates=False),
    **entries("MusicgenForCausalLM MusicgenMelodyForCausalLM", MUSIC, codes, generates=False),
    **entries({"DacModel": {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "downsampling_ratios": [2,
        2], "upsampling_ratios": [2, 2], "n_codebooks": 2,
               "codebook_size": 16, "codebook_dim": 4, "hidden_size": 32}}, {}, channel, chooses=True),
    **entries({"PatchTSTForRegression": {}, "PatchTSMixerForRegression": {}}, {"num_input_channels": 3,
        "context_length": 32, "patch_length": 8, "patch_stride": 8,
               "d_model": 32, "num_hidden_layers": 1, "num_layers": 1, "num_attention_heads": 4,
                   "ffn_dim": 64, "num_targets": 3, "num_parallel_samples": 4,
               "loss": "mse"}, partial(features, 32, 3, name="past_values")),
}  # fmt: skip
