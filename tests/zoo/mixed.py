"""transformers: models of several kinds of input."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .entry import Entry, pixels, tokens
from .of_transformers import entries
from .sound import wave
from .text import SMALL
from .vision import SMALL as EYES

TEXT = {**SMALL, "num_key_value_heads": 4}
LLAMA = {"model_type": "llama", **SMALL}
QWEN2 = {"model_type": "qwen2", **SMALL}
CLIP_EYES = {"model_type": "clip_vision_model", **EYES}
SIGLIP_EYES = {"model_type": "siglip_vision_model", **EYES}
PAIR = {"text_config": TEXT, "vision_config": EYES, "projection_dim": 32}
QFORMER = {**SMALL, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
IMAGE = 95  # the token that stands for the image
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def captioned(count: int = 16, size: int = 32, image: int = IMAGE, **more: Any) -> dict[str, Any]:
    """As many tokens as there are patches stand for the image."""
    ids = torch.cat([torch.full((2, count), image), torch.randint(3, 90, (2, 5))], dim=1)
    return pixels(size, input_ids=ids, attention_mask=torch.ones_like(ids), **more)


def both(length: int = 9, size: int = 32, **more: Any) -> dict[str, Any]:
    return {**tokens(length=length), **pixels(size), **more}


def of_qwen(patch: int) -> dict[str, Any]:
    ids = torch.cat(
        [
            torch.full((2, 1), 92),
            torch.full((2, 4), IMAGE),
            torch.full((2, 1), 93),
            torch.randint(3, 90, (2, 5)),
        ],
        dim=1,
    )
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(32,
        3 * 2 * patch * patch),
            "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
                "mm_token_type_ids": (ids == IMAGE).int()}  # fmt: skip


def point() -> dict[str, Any]:
    return pixels(64, input_points=torch.rand(2, 1, 1, 2) * 64)


LLAVA = {
    "text_config": LLAMA,
    "vision_config": CLIP_EYES,
    "image_token_index": IMAGE,
    "image_token_id": IMAGE,
    "vision_feature_layer": -1,
}
QWEN_VL = {
    "image_token_id": IMAGE,
    "video_token_id": 94,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}

TABLE: dict[str, Entry] = {
    **entries("AltCLIPModel ChineseCLIPModel CLIPModel SiglipModel MetaClip2Model CLIPSegModel", PAIR,
        both),
    **entries({"CLIPSegForImageSegmentation": {**PAIR, "extract_layers": [0, 1], "reduce_dim": 16,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}}, {}, both),
    **entries({"AlignModel": {"text_config": TEXT, "vision_config": {"width_coefficient": 0.25,
        "depth_coefficient": 0.3, "hidden_dim": 320, "depth_divisor": 4}, "projection_dim": 80},
               "GroupViTModel": {**PAIR, "vision_config": {**EYES, "depths": [1, 1, 1],
                   "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 4], "num_hidden_layers": 3},
                                 "projection_intermediate_dim": 32}}, {}, both),
    **entries({"ClapModel": {"text_config": TEXT, "projection_dim": 32, "audio_config": {"spec_size": 32,
        "patch_size": 4, "patch_stride": [4, 4], "num_mel_bins": 8, "depths": [1, 1],
        "num_attention_heads": [2, 2], "window_size": 4, "hidden_size": 32, "patch_embeds_hidden_size": 16,
            "projection_hidden_size": 16, "num_classes": 5}}},
        {}, lambda: tokens(input_features=torch.randn(2, 1, 128, 8))),
    **entries({"BlipModel": PAIR, "BlipForConditionalGeneration": {**PAIR, "text_config": {**TEXT,
        "encoder_hidden_size": 32, "sep_token_id": 2}}}, {}, both),
    **entries({"Blip2ForConditionalGeneration": {"text_config": {"model_type": "opt", **SMALL,
        "ffn_dim": 64, "word_embed_proj_dim": 32}, "vision_config": EYES, "qformer_config": QFORMER,
        "num_query_tokens": 4, "image_token_index": IMAGE}}, {}, partial(captioned, 4)),
    **entries({"InstructBlipForConditionalGeneration": {"text_config": {"model_type": "opt", **SMALL,
        "ffn_dim": 64, "word_embed_proj_dim": 32}, "vision_config": EYES, "qformer_config": QFORMER,
        "num_query_tokens": 4, "image_token_index": IMAGE}}, {}, lambda: captioned(4,
            qformer_input_ids=torch.randint(3, 90, (2, 5)))),
    **entries("LlavaForConditionalGeneration VipLlavaForConditionalGeneration", LLAVA, captioned),
    **entries({"PaliGemmaForConditionalGeneration": {"text_config": {"model_type": "gemma", **SMALL},
        "vision_config": SIGLIP_EYES, "image_token_index": IMAGE, "image_token_id": IMAGE,
        "projection_dim": 32}}, {}, captioned),
    **entries({"Gemma3ForConditionalGeneration": {"text_config": {"model_type": "gemma3_text", **SMALL},
        "vision_config": SIGLIP_EYES, "mm_tokens_per_image": 4, "image_token_index": IMAGE,
        "image_token_id": IMAGE}}, {}, lambda: captioned(4,
            token_type_ids=torch.tensor([[1] * 4 + [0] * 5] * 2))),
    **entries({"Idefics3ForConditionalGeneration": {}, "SmolVLMForConditionalGeneration": {}},
        {"text_config": LLAMA, "vision_config": EYES, "scale_factor": 2, "image_token_id": IMAGE},
        lambda: {**(given := captioned(4)), "pixel_values": given["pixel_values"][:, None]}),
    **entries({"InternVLForConditionalGeneration": {"text_config": QWEN2, "vision_config": {**EYES,
        "image_size": [32, 32], "patch_size": [8, 8]}, "image_token_id": IMAGE, "downsample_ratio": 0.5}},
        {}, partial(captioned, 4)),
    **entries({"Qwen2VLForConditionalGeneration": {**QWEN_VL, "text_config": {**SMALL,
        "rope_parameters": MROPE},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4,
            "mlp_ratio": 2}}}, {}, partial(of_qwen, 4)),
    **entries({"Qwen2_5_VLForConditionalGeneration": {**QWEN_VL, "text_config": {**SMALL,
        "rope_parameters": MROPE},
        "vision_config": {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4,
            "patch_size": 4, "intermediate_size": 64, "window_size": 16, "fullatt_block_indexes": [0]}}},
        {}, partial(of_qwen, 4)),
    **entries({"Qwen3VLForConditionalGeneration": {**QWEN_VL, "text_config": {**SMALL,
        "rope_parameters": MROPE},
        "vision_config": {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4,
            "patch_size": 4, "intermediate_size": 64, "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16}}}, {}, partial(of_qwen, 4)),
    **entries({"GitForCausalLM": {**TEXT, "vision_config": EYES}}, {}, both),
    **entries({"Florence2ForConditionalGeneration": {"text_config": {"model_type": "bart",
        "vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
            "max_position_embeddings": 64}, "image_token_id": IMAGE,
        "vision_config": {"depths": [1, 1], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2,
            2], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "window_size": 4, "projection_dim": 32,
            "max_position_embeddings": 8}}}, {},
        lambda: captioned(17, decoder_input_ids=torch.randint(3, 90, (2, 7)))),
    **entries({"Kosmos2ForConditionalGeneration": {"text_config": {"vocab_size": 96, "embed_dim": 32,
        "layers": 1, "ffn_dim": 64, "attention_heads": 4, "max_position_embeddings": 64},
        "vision_config": EYES, "latent_query_num": 4}}, {}, lambda: captioned(4,
            image_embeds_position_mask=torch.tensor([[1] * 4 + [0] * 5] * 2))),
    **entries({"LxmertModel": {**TEXT, "l_layers": 1, "x_layers": 1, "r_layers": 1,
        "visual_feat_dim": 16}}, {},
        lambda: tokens(visual_feats=torch.randn(2, 4, 16), visual_pos=torch.rand(2, 4, 4))),
    **entries({"VisualBertModel": {**TEXT, "visual_embedding_dim": 16}}, {},
        lambda: tokens(visual_embeds=torch.randn(2, 4, 16))),
    **entries({"FlavaModel": {"text_config": TEXT, "image_config": EYES, "multimodal_config": TEXT,
        "projection_dim": 32, "hidden_size": 32}}, {}, both),
    **entries({"BridgeTowerModel": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "text_config": {**TEXT, "hidden_size": 64},
        "vision_config": {"hidden_size": 64, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}}},
            {}, both),
    **entries({"OwlViTForObjectDetection": PAIR, "Owlv2ForObjectDetection": PAIR}, {}, both),
    **entries({"SamModel": {}}, {"vision_config": {"hidden_size": 32, "output_channels": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
        "mlp_dim": 64, "global_attn_indexes": [0], "window_size": 4, "num_pos_feats": 16},
            "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 8,
            "mask_input_channels": 4},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "iou_head_hidden_dim": 32}}, point),
    **entries({"LayoutLMv3Model": {**TEXT, "coordinate_size": 4, "shape_size": 8, "input_size": 32,
        "patch_size": 8, "max_2d_position_embeddings": 64, "has_spatial_attention_bias": True,
        "has_relative_attention_bias": True}}, {},
        lambda: both(bbox=torch.randint(0, 30, (2, 9, 1)).expand(2, 9, 4).contiguous())),
    **entries({"Pix2StructForConditionalGeneration": {"text_config": {"vocab_size": 96, "hidden_size": 32,
        "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}, "vision_config": {"hidden_size": 32,
        "d_ff": 64, "d_kv": 8,
        "num_hidden_layers": 1, "num_attention_heads": 4, "patch_embed_hidden_size": 16}}}, {},
            lambda: {"flattened_patches": torch.cat([torch.randint(1, 8, (2, 9, 2)).float(), torch.randn(2,
            9, 16)], -1),
        "decoder_input_ids": torch.randint(3, 96, (2, 7))}),
    **entries({"TrOCRForCausalLM": {"vocab_size": 96, "d_model": 32, "decoder_layers": 1,
        "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "cross_attention_hidden_size": 32,
        "max_position_embeddings": 64}}, {}, tokens),
    **entries({"PerceiverForImageClassificationLearned": {"num_latents": 8, "d_latents": 32,
        "num_blocks": 1, "num_self_attends_per_block": 1, "num_self_attention_heads": 4,
        "num_cross_attention_heads": 1, "image_size": 16,
        "num_labels": 5}}, {}, lambda: {"inputs": torch.randn(2, 3, 16, 16)}),
    **entries({"Data2VecAudioModel": {}}, {"hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "conv_dim": [16], "conv_stride": [4],
        "conv_kernel": [8], "num_feat_extract_layers": 1,
        "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2, "num_conv_pos_embedding_groups": 2}, wave),
    **entries({"DecisionTransformerModel": {"state_dim": 4, "act_dim": 3, "hidden_size": 32, "n_layer": 1,
        "n_head": 4, "max_ep_len": 16}}, {}, lambda: {"states": torch.randn(2, 5, 4),
        "actions": torch.randn(2, 5, 3),
        "rewards": torch.randn(2, 5, 1), "returns_to_go": torch.randn(2, 5, 1),
            "timesteps": torch.arange(5).expand(2, 5).contiguous(), "attention_mask": torch.ones(2, 5)}),
    **entries({"MgpstrForSceneTextRecognition": {"image_size": [16, 32], "hidden_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_character_labels": 20, "num_bpe_labels": 20,
        "num_wordpiece_labels": 20,
        "max_token_length": 7}}, {}, lambda: {"pixel_values": torch.randn(2, 3, 16, 32)}),
}  # fmt: skip
