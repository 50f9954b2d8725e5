"""Small configurations of transformers' architectures, from the names of their fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

VOCABULARY, LENGTH = 160, 16
PAD, BOS, EOS, OTHER, MASK, MARK, IMAGE, VIDEO, SOUND, FIRST = 0, 1, 2, 3, 4, 5, 6, 7, 8, 10
SIDE = 32
LAST = VOCABULARY - 1

SMALL: dict[int, str] = {
    VOCABULARY: "vocab_size n_vocab text_vocab_size vocab_size_per_layer_input",
    32: "hidden_size d_model n_embd embed_dim dim embedding_size hidden_dim input_dim d_embed emb_dim width "
    "rotary_dim_full attention_hidden_size decoder_hidden_size lm_head_hidden_size dim_model",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_key_value_heads "
    "num_decoder_layers num_kv_heads num_experts_per_tok num_experts_per_token moe_topk num_blocks num_encoder_layers "
    "top_k_experts attn_num_kv_heads num_attention_groups linear_num_key_heads num_hash_layers block_repeat",
    4: "num_attention_heads n_head n_heads encoder_attention_heads decoder_attention_heads num_heads "
    "num_local_experts num_experts n_routed_experts moe_num_experts linear_num_value_heads rotary_dim "
    "state_size mamba_d_state q_heads attention_heads mamba_n_heads",
    64: "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner hidden_dim_ffn inner_dim "
    "ffn_hidden_size max_position_embeddings n_positions n_ctx moe_intermediate_size max_seq_len block_size "
    "shared_expert_intermediate_size expert_ffn_hidden_size mlp_dim dff max_sequence_length",
    8: "head_dim d_kv attention_head_size linear_key_head_dim linear_value_head_dim v_head_dim qk_nope_head_dim "
    "qk_rope_head_dim mamba_d_head mamba_head_dim",
    16: "kv_lora_rank q_lora_rank sliding_window attention_window local_attention",
    1: "n_group topk_group moe_layer_start_index first_k_dense_replace n_shared_experts num_shared_experts "
    "mamba_n_groups n_groups",
}
MEDIA: dict[int, str] = {
    32: "out_hidden_size projection_dim max_source_positions text_hidden_size output_dim d_latents "
    "encoder_hidden_size word_embed_proj_dim mask_feature_size hidden_size_per_layer_input fusion_hidden_size",
    2: "depth layers num_stages_decoder decoder_num_hidden_layers resampler_depth encoder_num_hidden_layers "
    "num_spatial_layers num_temporal_layers speech_encoder_layers t2u_encoder_layers t2u_decoder_layers "
    "num_conv_pos_embedding_groups perceiver_depth spatial_merge_size",
    4: "num_frames frames_per_clip num_query_tokens decoder_num_attention_heads resampler_n_heads "
    "encoder_num_attention_heads mm_tokens_per_image speech_encoder_attention_heads decoder_self_attention_heads "
    "decoder_cross_attention_heads adapter_attention_heads resampler_n_latents dim_head resampler_head_dim",
    8: "num_queries num_mel_bins_small num_latents",
    16: "num_conv_pos_embeddings num_mel_bins input_feat_per_channel",
    64: "max_length max_target_positions decoder_intermediate_size dim_feedforward encoder_feedforward_dim "
    "num_position_embeddings",
    128: "max_position_embeddings",
}
SIZES = {name: value for value, names in SMALL.items() for name in names.split()}
MEDIA_SIZES = {name: value for value, names in MEDIA.items() for name in names.split()}
TOKENS = {
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "decoder_start_token_id": BOS,
    "sep_token_id": EOS,
    "cls_token_id": BOS,
    "mask_token_id": MASK,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": VIDEO,
    "video_token_index": VIDEO,
    "audio_token_id": SOUND,
    "audio_token_index": SOUND,
}
WINDOW_SIZES = ("sliding_window", "attention_window", "local_attention")
COMPUTED = ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers", "layers_types")
REPEATS = ("depths", "num_block_repeats", "stage_num_blocks", "stage_numb_of_layers", "depth")
LAYERS = ("fullatt_block_indexes", "deepstack_visual_indexes", "global_attn_indexes", "window_block_indexes")
WIDE = ("_dim", "_dims", "_channels", "_width", "hidden_sizes", "_hidden_size", "proj_size", "_dim_size")
TWO_LABELS = ("sequence", "choice", "next-sentence", "question", "document")
CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride")

# what some architectures tie to each other, tried in order after the plain small sizes
VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4, "num_kv_heads": 4},
    {"qk_rope_head_dim": 8, "head_dim": 8, "qk_nope_head_dim": 8, "num_key_value_heads": 4, "rotary_dim": 8},
    {"num_hidden_layers": 4, "num_layers": 4},
    {"num_hidden_layers": 8, "num_layers": 8},
    {"head_dim": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "num_key_value_heads": 4},
    {"use_cache": False, "num_hidden_layers": 4},
]
MEDIA_VARIANTS: list[dict[str, Any]] = [
    *VARIANTS[:4],
    {"image_size": 64},
    {"patch_size": 16, "image_size": 64},
    {"encoder_stride": 8},
]
EFFICIENT = {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}
WINDOWS = {"image_size": 64, "window_size": 2}
FOUR = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
FORECAST = {"prediction_length": 8, "context_length": 16, "num_time_features": 1, "lags_sequence": [1, 2, 3]}
RESIDUAL = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
}
UNFIT = {"mra": f"it reads blocks of 32 tokens, and among {LENGTH} attends to none"}
PARTICULAR: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {
        "axial_pos_shape": [4, 4],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
    },
    "t5": {"decoder_start_token_id": PAD},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "max_position_embeddings": LENGTH,
    },
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 32},
    "roc_bert": {
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "longt5": {"decoder_start_token_id": PAD},
    "switch_transformers": {"decoder_start_token_id": PAD},
    "xmod": {"default_language": "en_XX"},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "max_2d_position_embeddings": 64},
    "bit": {"num_groups": 4},
    "efficientnet": EFFICIENT,
    "align_vision_model": EFFICIENT,
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "pvt": {"image_size": 64},
    "pvt_v2": {"image_size": 64},
    "deformable_detr": {**RESIDUAL, "hidden_size": 64},
    "chmv2": {"max_depth": 4.0, "bins_strategy": "linear"},
    "audio-spectrogram-transformer": {"frequency_stride": 8, "time_stride": 8},
    "donut-swin": WINDOWS,
    "maskformer-swin": WINDOWS,
    "beit": FOUR,
    "data2vec-vision": FOUR,
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "vjepa2": {"pred_num_attention_heads": 4, "pred_hidden_size": 32, "pred_num_hidden_layers": 1},
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm_ocr_text", "glmga_text"), ROTARY),
    "mask2former": {"feature_size": 32},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4, "qk_head_dim": 16},
    "cvt": {"depth": [1, 2, 3]},
    "patchtst": {"num_targets": 3},
    **dict.fromkeys(("informer", "autoformer", "time_series_transformer"), FORECAST),
    **dict.fromkeys(("detr", "conditional_detr", "dab-detr", "table-transformer"), RESIDUAL),
    "lilt": {"channel_shrink_ratio": 2, "max_2d_position_embeddings": 64, "hidden_size": 48},
}


def shrink(kind: Any, head: str, variant: Mapping[str, Any], *, media: bool = False) -> Any:
    """A configuration of the kind with every size that it has made small.

    Args:
        kind: the configuration class.
        head: the head that it is for; a causal one makes a decoder of it.
        variant: sizes that override the small ones.
        media: also shrink what images, sound and series need.
    """
    if head == "contrast":
        variant = {**variant, "eos_token_id": LAST}
    config = kind(**_small(kind, variant, media))
    if head == "causal":
        for part in _texts(config):
            part.is_decoder = True
            part.use_cache = False
            if hasattr(part, "causal"):
                part.causal = True
    if (decoder := getattr(config, "decoder", None)) is not None and hasattr(decoder, "add_cross_attention"):
        decoder.is_decoder = decoder.add_cross_attention = True
    for name in ("pad_token_id", "decoder_start_token_id"):
        if not hasattr(config, name):
            setattr(config, name, TOKENS[name])
    config.num_labels = 2 if head in TWO_LABELS else 3
    return config


def part_with(config: Any, name: str) -> Any | None:
    """The configuration, or the first of its parts, that has a field with a value; ``None`` when none has."""
    if getattr(config, name, None) is not None:
        return config
    for part in getattr(config, "sub_configs", {}):
        inner = getattr(config, part, None)
        if inner is not None and (found := part_with(inner, name)) is not None:
            return found
    return None


def _small(kind: Any, variant: Mapping[str, Any], media: bool) -> dict[str, Any]:
    default = kind()
    names = {*vars(default), *getattr(kind, "attribute_map", {})}
    sizes = {**SIZES, **MEDIA_SIZES} if media else SIZES
    changes: dict[str, Any] = {
        name: size for name, size in sizes.items() if name in names and _is_count(default, name)
    }
    changes |= {name: token for name, token in TOKENS.items() if name in names}
    changes |= {name: None for name in COMPUTED if name in vars(default)}
    if media:
        rest = {name: value for name, value in vars(default).items() if name not in changes}
        changes |= {name: value for name, old in rest.items() if (value := _capped(name, old)) != old}
    for name in getattr(kind, "sub_configs", {}):
        if (part := getattr(default, name, None)) is not None and hasattr(part, "to_dict"):
            small = _small(type(part), variant, media)
            changes[name] = {**(_own(part, small) if media else {}), **small, "model_type": part.model_type}
            changes[name] |= _stages(part) if media else {}
    changes |= {name: value for name, value in variant.items() if name in names}
    return changes | PARTICULAR.get(kind.model_type, {})


def _own(part: Any, small: Mapping[str, Any]) -> dict[str, Any]:
    """What an architecture asks of its part that the part alone would not have."""
    plain = vars(type(part)())
    return {
        name: _capped(name, value)
        for name, value in vars(part).items()
        if name not in small and isinstance(value, (bool, int, float, str)) and value != plain.get(name)
    }


def _stages(part: Any) -> dict[str, Any]:
    """As many outputs of a backbone as its owner expects, from as many layers where these are counted."""
    count = len(getattr(part, "out_indices", None) or ())
    if count < 2:
        return {}
    if any(hasattr(part, name) for name in (*REPEATS, "block_configs")):
        return {"out_features": list(part.out_features)}
    return {"num_hidden_layers": count, "out_indices": list(range(1, count + 1))}


def _capped(name: str, value: Any) -> Any:
    """A smaller value of a field of images or sound, by what its name ends in."""
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        if name in CONVOLUTIONS:
            return list(_cap(value, 32)[:3])
        if name in REPEATS:
            return [1] * len(value)
        if name in LAYERS:
            return [0]
        if name in ("num_attention_heads", "num_heads", "decoder_num_heads"):
            return [2] * len(value)
    if name in ("image_size", "crop_size", "pretrain_image_size"):
        return _cap(value, SIDE)
    if name == "patch_size":
        return _cap(value, 8)
    if name.endswith(("_token_id", "_token_index")) and type(value) is int and value >= VOCABULARY:
        return OTHER
    if name == "num_feat_extract_layers":
        return 3
    if name == "initializer_range" and value < 1e-6:
        return 0.02
    if name == "image_grid_pinpoints":
        return [[2 * SIDE, SIDE]]
    return _cap(value, 32) if name.endswith(WIDE) else value


def _cap(value: Any, most: int) -> Any:
    if type(value) is int:
        return min(value, most)
    if isinstance(value, (list, tuple)):
        return [_cap(part, most) for part in value]
    return value


def _is_count(config: Any, name: str) -> bool:
    """Whether a field can hold a size; one without a window may have a cache that knows windows, and no mask."""
    value = getattr(config, name, None)
    if value is None:
        return name not in WINDOW_SIZES
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(config: Any) -> Iterator[Any]:
    yield config
    if (text := config.get_text_config()) is not config:
        yield text
