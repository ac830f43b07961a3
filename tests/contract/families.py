# SPDX-License-Identifier: Apache-2.0
"""Tiny models of transformers' families, from their configurations alone, with an input for each."""

import torch

TEXT = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
DECODER = {**TEXT, **ENDS, "num_key_value_heads": 2}
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0, **ENDS}
IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SPEECH = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2, "mask_time_length": 2,
}  # fmt: skip
T5 = {
    "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
SEQ2SEQ = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "pad_token_id": 0, **ENDS, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
WHISPER = {
    **SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 40,
    "begin_suppress_tokens": None, "suppress_tokens": None,
}  # fmt: skip
WHISPER.pop("max_position_embeddings")
TOWERS = {"text_config": {**TEXT, "max_position_embeddings": 16, **ENDS}, "vision_config": IMAGE}


def tokens(*shape):
    return torch.randint(3, 99, shape)


def words():
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 9:] = 0
    return {"input_ids": tokens(2, 12), "attention_mask": mask}


def prompt():
    return {"input_ids": tokens(2, 7)}


def image():
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def large_image():
    return {"pixel_values": torch.randn(2, 3, 64, 64)}


def sound():
    return {"input_values": torch.randn(2, 800)}


def translation():
    return {**words(), "decoder_input_ids": tokens(2, 5)}


def transcription():
    return {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": tokens(2, 5)}


def spectrogram():
    return {"input_values": torch.randn(2, 32, 16)}


def captioned():
    return {"input_ids": tokens(2, 9), "pixel_values": torch.randn(2, 3, 32, 32)}


# name: (model class, configuration class, its arguments, input)
ENCODERS = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT, words),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", TEXT, words),
    "distilbert": (
        "DistilBertForQuestionAnswering", "DistilBertConfig",
        {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, words,
    ),
    "albert": ("AlbertForTokenClassification", "AlbertConfig", {**TEXT, "embedding_size": 16}, words),
    "electra": ("ElectraModel", "ElectraConfig", {**TEXT, "embedding_size": 16}, words),
    "deberta_v2": (
        "DebertaV2Model", "DebertaV2Config",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}, words,
    ),
    "mpnet": ("MPNetModel", "MPNetConfig", TEXT, words),
    "xlm_roberta": ("XLMRobertaForTokenClassification", "XLMRobertaConfig", TEXT, words),
    "longformer": ("LongformerModel", "LongformerConfig", {**TEXT, "attention_window": 4}, words),
    "funnel": (
        "FunnelModel", "FunnelConfig",
        {"vocab_size": 99, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64}, words,
    ),
    "convbert": ("ConvBertModel", "ConvBertConfig", {**TEXT, "embedding_size": 32}, words),
    "squeezebert": ("SqueezeBertModel", "SqueezeBertConfig", {**TEXT, "embedding_size": 32}, words),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", {**TEXT, "cls_token_id": 1, "sep_token_id": 2}, words),
}  # fmt: skip
DECODERS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT, prompt),
    "gpt_neo": (
        "GPTNeoForCausalLM", "GPTNeoConfig",
        {"vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "window_size": 4,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64, "pad_token_id": 0, **ENDS}, prompt,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**TEXT, **ENDS}, prompt),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}, prompt),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
         "word_embed_proj_dim": 32, "max_position_embeddings": 64, "pad_token_id": 0, **ENDS}, prompt,
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER, prompt),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**DECODER, "sliding_window": 4}, prompt),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER, prompt),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**DECODER, "head_dim": 8}, prompt),
    "phi": ("PhiForCausalLM", "PhiConfig", DECODER, prompt),
    "falcon": (
        "FalconForCausalLM", "FalconConfig",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0, **ENDS},
        prompt,
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4,
                                                  "pad_token_id": 0, **ENDS}, prompt),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2,
                                                  "state_size": 8, "pad_token_id": 0, **ENDS}, prompt),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**DECODER, "num_local_experts": 4}, prompt),
}  # fmt: skip
VISION = {
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE, image),
    "deit": ("DeiTModel", "DeiTConfig", IMAGE, image),
    "swin": ("SwinModel", "SwinConfig", {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4,
                                         "image_size": 32, "patch_size": 4}, image),
    "convnext": ("ConvNextModel", "ConvNextConfig", {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 2, 1]}, image),
    "resnet": ("ResNetForImageClassification", "ResNetConfig",
               {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]}, image),
    "mobilenet_v1": ("MobileNetV1Model", "MobileNetV1Config", {"depth_multiplier": 0.25, "image_size": 32}, image),
    "mobilenet_v2": ("MobileNetV2Model", "MobileNetV2Config", {"depth_multiplier": 0.25, "image_size": 32}, image),
    "efficientnet": (
        "EfficientNetForImageClassification", "EfficientNetConfig",
        {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320}, image,
    ),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig",
                  {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "decoder_hidden_size": 16}, image),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**IMAGE, "mlp_ratio": 2}, image),
    "beit": ("BeitModel", "BeitConfig", IMAGE, image),
    "levit": (
        "LevitForImageClassification", "LevitConfig",
        {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [1, 2, 3], "depths": [1, 1, 1],
         "key_dim": [8, 8, 8], "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]]}, large_image,
    ),
    "regnet": ("RegNetForImageClassification", "RegNetConfig",
               {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 8}, image),
    "mobilevit": (
        "MobileViTModel", "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 32],
         "num_attention_heads": 2}, large_image,
    ),
    "poolformer": ("PoolFormerModel", "PoolFormerConfig", {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4}, image),
}  # fmt: skip
AUDIO = {
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, sound),
    "hubert": ("HubertModel", "HubertConfig", SPEECH, sound),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER, transcription),
    "audio_spectrogram_transformer": (
        "ASTForAudioClassification", "ASTConfig",
        {**IMAGE, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4}, spectrogram,
    ),
}  # fmt: skip
SEQUENCE_TO_SEQUENCE = {
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, translation),
    "bart": ("BartForConditionalGeneration", "BartConfig", SEQ2SEQ, translation),
    "marian": ("MarianMTModel", "MarianConfig", SEQ2SEQ, translation),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", SEQ2SEQ, translation),
}
MULTIMODAL = {
    "clip": ("CLIPModel", "CLIPConfig", {**TOWERS, "projection_dim": 16}, captioned),
    "siglip": ("SiglipModel", "SiglipConfig", TOWERS, captioned),
    "blip": ("BlipForImageTextRetrieval", "BlipConfig", {**TOWERS, "projection_dim": 16, "image_text_hidden_size": 16},
             captioned),
    "vilt": ("ViltModel", "ViltConfig", {**TEXT, "image_size": 32, "patch_size": 8, "max_image_length": 16}, captioned),
}  # fmt: skip
FAMILIES = {**ENCODERS, **DECODERS, **VISION, **AUDIO, **SEQUENCE_TO_SEQUENCE, **MULTIMODAL}


def build(name):
    import transformers

    model_class, config_class, values, make_input = FAMILIES[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**values))
    return model, make_input()
