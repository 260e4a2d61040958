"""transformers: models of images and video."""

from __future__ import annotations

from functools import partial

import torch

from .entry import Entry, pixels
from .of_transformers import entries

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    "num_labels": 5,
}  # fmt: skip
WINDOWS = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": 5,
}
STAGES = {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 5}
PYRAMID = {
    "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3], "strides": [4, 2],
    "num_attention_heads": [2, 4], "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "num_labels": 5,
}  # fmt: skip
SWIN = {
    "model_type": "swin",
    **{key: value for key, value in WINDOWS.items() if key != "num_labels"},
    "out_features": ["stage1", "stage2"],
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
FOUR_STAGES = {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}
DETR = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
        "backbone_config": {**RESNET, "out_features": ["stage4"]},
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_queries": 6, "num_labels": 5,
}  # fmt: skip
CLIPS = {"num_frames": 2, "tubelet_size": 2, "image_size": 16, "patch_size": 8}

PATCHES = """
    Aimv2VisionModel CLIPVisionModel Data2VecVisionForImageClassification DINOv3ViTModel
    DeiTForImageClassification Dinov2ForImageClassification Dinov2WithRegistersForImageClassification
    IJepaForImageClassification MLCDVisionModel PixioModel SiglipVisionModel ViTForImageClassification
    ViTMSNForImageClassification VitDetModel
"""
OTHERS = {
    "BeitForImageClassification": {"use_relative_position_bias": True, "layer_scale_init_value": 0.1},
    "ViTForMaskedImageModeling": {"encoder_stride": 8},
    "DPTForDepthEstimation": {"is_hybrid": False, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2,
        3], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16,
                              "reassemble_factors": [4, 2, 1, 0.5]},
    "DepthAnythingForDepthEstimation": {"backbone_config": {"model_type": "dinov2", "hidden_size": 32,
        "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8, "intermediate_size": 64, "out_indices": [1, 2, 3, 4],
            "reshape_hidden_states": False, "apply_layernorm": True},
        "reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16,
            "head_hidden_size": 8, "patch_size": 8},
    "HieraForImageClassification": {"image_size": [32, 32], "patch_size": [7, 7], "patch_stride": [4, 4],
        "patch_padding": [3, 3], "embed_dim": 16, "depths": [1, 1],
        "num_heads": [1, 2], "num_query_pool": 1, "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
        "hidden_size": ..., "num_hidden_layers": ..., "num_attention_heads": ..., "intermediate_size": ...},
    "YolosForObjectDetection": {"image_size": [32, 32], "num_detection_tokens": 5},
    "VitPoseForPoseEstimation": {"backbone_config": {"model_type": "vitpose_backbone", "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": [32, 32], "patch_size": [8, 8]}},
    "Sapiens2Model": {},
}  # fmt: skip
CONVOLUTIONS = {
    "BitForImageClassification": {"hidden_sizes": [32, 64], "embedding_size": 32, "depths": [1, 1],
        "layer_type": "preactivation", "num_groups": 4, "num_labels": 5},
    "ConvNextForImageClassification": STAGES,
    "ConvNextV2ForImageClassification": STAGES,
    "DINOv3ConvNextModel": {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
    "CvtForImageClassification": {"embed_dim": [16, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3],
        "mlp_ratio": [2.0] * 3, "num_labels": 5},
    "EfficientNetForImageClassification": {"width_coefficient": 0.25, "depth_coefficient": 0.3,
        "hidden_dim": 320, "image_size": 32, "depth_divisor": 4,
        "num_labels": 5},
    "FocalNetForImageClassification": {"embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
        "focal_levels": [1, 1], "focal_windows": [3, 3],
        "image_size": 32, "num_labels": 5},
    "GLPNForDepthEstimation": {**PYRAMID, "num_encoder_blocks": 4, "depths": [1] * 4, "sr_ratios": [2, 1,
        1, 1], "hidden_sizes": [16] * 4,
        "patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2], "num_attention_heads": [2] * 4,
            "mlp_ratios": [2] * 4},
    "LevitForImageClassification": {"image_size": 32, "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
        "mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2], "num_labels": 5},
    "MobileNetV1ForImageClassification": {"depth_multiplier": 0.25, "num_labels": 5},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.25, "num_labels": 5},
    "MobileViTForImageClassification": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16,
        24, 24, 32], "image_size": 32, "num_labels": 5},
    "PoolFormerForImageClassification": {**STAGES, "num_encoder_blocks": 2, "patch_sizes": [7, 3],
        "strides": [4, 2], "padding": [2, 1]},
    "PvtForImageClassification": {**PYRAMID, "image_size": 32, "sequence_reduction_ratios": [2, 1],
        "patch_sizes": [4, 2]},
    "PvtV2ForImageClassification": {"image_size": 32, "hidden_sizes": [16, 16, 16, 32], "depths": [1] * 4,
        "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2] * 4,
        "num_labels": 5},
    "RegNetForImageClassification": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
        "groups_width": 8, "num_labels": 5},
    "ResNetForImageClassification": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1],
        "num_labels": 5},
    "SegformerForSemanticSegmentation": PYRAMID,
    "Swin2SRForImageSuperResolution": {**WINDOWS, "upscale": 2, "upsampler": "pixelshuffle",
        "patch_size": 1, "image_size": 16},
    "SwinForImageClassification": WINDOWS,
    "Swinv2ForImageClassification": WINDOWS,
    "DonutSwinForImageClassification": WINDOWS,
    "SwiftFormerForImageClassification": {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 32],
        "num_labels": 5},
    "TextNetForImageClassification": {"stem_out_channels": 8, "conv_layer_configs": ...,
        "hidden_sizes": [8, 8, 8, 8, 8]},
    "UperNetForSemanticSegmentation": {"backbone_config": {**SWIN, "out_features": ["stage1", "stage2"]},
        "hidden_size": 16, "pool_scales": [1, 2],
        "use_auxiliary_head": False, "num_labels": 5},
    "SuperPointForKeypointDetection": {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16,
        "keypoint_decoder_dim": 65, "descriptor_decoder_dim": 16},
    "MaskFormerModel": {"backbone_config": {**SWIN, "depths": [1] * 4, "num_heads": [2] * 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"]},
        "decoder_config": {"model_type": "detr", **{k: v for k, v in DETR.items() if k != "num_labels"}},
            "fpn_feature_size": 32, "mask_feature_size": 32},
}  # fmt: skip
DETECTORS = {
    "MobileViTV2ForImageClassification": {
        "width_multiplier": 0.25,
        "n_attn_blocks": [1, 1, 1],
        "image_size": 64,
        "num_labels": 5,
    },
    "DetrForObjectDetection": DETR,
    "ConditionalDetrForObjectDetection": DETR,
    "DabDetrForObjectDetection": {**DETR, "hidden_size": 32},
    "TableTransformerForObjectDetection": DETR,
}
CHOOSERS = {
    "DeformableDetrForObjectDetection": {**DETR, "backbone_config": FOUR_STAGES, "encoder_n_points": 2,
        "decoder_n_points": 2, "decoder_layers": 2},
    "Mask2FormerModel": {"backbone_config": {**SWIN, "depths": [1] * 4, "num_heads": [2] * 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"]}, "hidden_dim": 32,
        "feature_size": 32, "mask_feature_size": 16, "encoder_layers": 1, "decoder_layers": 2,
            "num_attention_heads": 4, "dim_feedforward": 64,
        "encoder_feedforward_dim": 64, "num_queries": 6},
    "RTDetrForObjectDetection": {"backbone_config": {"model_type": "rt_detr_resnet", "embedding_size": 8,
        "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4,
        "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]}, "encoder_hidden_dim": 32,
            "encoder_in_channels": [16, 16, 16],
        "feat_strides": [8, 16, 32], "encoder_ffn_dim": 64, "encoder_attention_heads": 4, "d_model": 32,
            "num_queries": 6, "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "num_denoising": 0,
            "num_labels": 5, "anchor_image_size": None},
    "RTDetrV2ForObjectDetection": {"backbone_config": {"model_type": "rt_detr_resnet", "embedding_size": 8,
        "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4,
        "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]}, "encoder_hidden_dim": 32,
            "encoder_in_channels": [16, 16, 16],
        "feat_strides": [8, 16, 32], "encoder_ffn_dim": 64, "encoder_attention_heads": 4, "d_model": 32,
            "num_queries": 6, "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "num_denoising": 0,
            "num_labels": 5, "anchor_image_size": None},
}  # fmt: skip
VIDEOS = {
    "TimesformerForVideoClassification": CLIPS,
    "VideoMAEForVideoClassification": CLIPS,
    "VivitForVideoClassification": {**CLIPS, "tubelet_size": [2, 8, 8]},
}  # fmt: skip
VJEPA2 = {
    "crop_size": 16,
    "frames_per_clip": 2,
    "tubelet_size": 2,
    "patch_size": 8,
    "pred_hidden_size": 16,
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2,
    "pred_num_mask_tokens": 2,
}


def patches() -> dict[str, torch.Tensor]:
    mask, shapes = torch.ones(2, 16, dtype=torch.long), torch.tensor([[4, 4], [2, 8]])
    return {
        "pixel_values": torch.randn(2, 16, 3 * 8 * 8),
        "pixel_attention_mask": mask,
        "spatial_shapes": shapes,
    }


def clips() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 2, 3, 16, 16)}


def clips_of_vjepa2() -> dict[str, torch.Tensor]:
    return {"pixel_values_videos": torch.randn(2, 2, 3, 16, 16)}


def colours() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 16, (2, 16))}


def noise_for_mask() -> dict[str, torch.Tensor]:
    return pixels(noise=torch.rand(2, 16))


TABLE: dict[str, Entry] = {
    **entries(PATCHES, SMALL, pixels),
    **entries("ViTMAEModel", SMALL, noise_for_mask),
    **entries(OTHERS, SMALL, pixels),
    **entries({"Siglip2VisionModel": {"num_patches": 16}}, SMALL, patches),
    **entries(CONVOLUTIONS, {}, pixels),
    **entries(DETECTORS, {}, partial(pixels, 64)),
    **entries(CHOOSERS, {}, partial(pixels, 64), chooses=True),
    **entries(VIDEOS, SMALL, clips),
    **entries({"VJEPA2Model": VJEPA2}, SMALL, clips_of_vjepa2),
    **entries(
        {
            "ImageGPTForCausalImageModeling": {
                "vocab_size": 17,
                "n_positions": 16,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
            }
        },
        {},
        colours,
        generates=False,
    ),
}
