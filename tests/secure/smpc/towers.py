"""Small towers of transformers with random weights, and batches for them."""

import torch
import transformers as hf
from torch import nn

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 60,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 59,
    "pad_token_id": 0,
}


DINO = {k: v for k, v in VISION.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
ROBERTA = TEXT | {"max_position_embeddings": 20, "pad_token_id": 1, "eos_token_id": 2}


def images():
    return {"pixel_values": torch.randn(4, 3, 16, 16)}


def captions():
    ids = torch.randint(3, 58, (4, 9))
    # Captions of different lengths: the end token at different places, padding behind it.
    for row, end in enumerate((8, 5, 3, 6)):
        ids[row, end] = 59
        ids[row, end + 1 :] = 0
    return {"input_ids": ids}


def roberta_captions():
    """Captions without padding: tokens 0 to 2 are marks, 1 the padding's."""
    ids = torch.randint(3, 60, (4, 9))
    ids[:, 0], ids[:, -1] = 0, 2
    return {"input_ids": ids}


def patches():
    return {
        "pixel_values": torch.randn(4, 6, 192),
        "pixel_attention_mask": torch.ones(4, 6, dtype=torch.long),
        "spatial_shapes": torch.tensor([[2, 3]] * 4),
    }


def _with_registers():
    model = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(num_register_tokens=3, **DINO))
    # Made as zeros; a trained model's are not.
    nn.init.normal_(model.embeddings.register_tokens)
    return model


MODELS = {
    "clip-image": (
        lambda: hf.CLIPVisionModelWithProjection(
            hf.CLIPVisionConfig(projection_dim=16, hidden_act="gelu", **VISION)
        ),
        images,
    ),
    "clip-text": (
        lambda: hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(projection_dim=16, **TEXT)),
        captions,
    ),
    "clip-old-end-token": (
        lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**{**TEXT, "eos_token_id": 2})),
        captions,
    ),
    "clip-both-image": (
        lambda: hf.CLIPModel(
            hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
        ),
        images,
    ),
    "clip-both-text": (
        lambda: hf.CLIPModel(
            hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
        ),
        captions,
    ),
    "siglip-image": (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION)), images),
    "siglip-text": (lambda: hf.SiglipTextModel(hf.SiglipTextConfig(**TEXT)), captions),
    "siglip2-image": (
        lambda: hf.Siglip2VisionModel(
            hf.Siglip2VisionConfig(
                **{k: v for k, v in VISION.items() if k != "image_size"}, num_patches=9
            )
        ),
        patches,
    ),
    "siglip2-text": (lambda: hf.Siglip2TextModel(hf.Siglip2TextConfig(**TEXT)), captions),
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**VISION)), images),
    "vit-classifier": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(num_labels=7, **VISION)),
        images,
    ),
    "bert": (lambda: hf.BertModel(hf.BertConfig(**TEXT)), captions),
    "minilm": (
        lambda: hf.BertModel(hf.BertConfig(**TEXT), add_pooling_layer=False),
        captions,
    ),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**DINO)), images),
    "dinov2-registers": (_with_registers, images),
    "roberta": (lambda: hf.RobertaModel(hf.RobertaConfig(**ROBERTA)), roberta_captions),
    "xlm-roberta": (
        lambda: hf.XLMRobertaModel(hf.XLMRobertaConfig(**ROBERTA), add_pooling_layer=False),
        roberta_captions,
    ),
    "distilbert": (
        lambda: hf.DistilBertModel(
            hf.DistilBertConfig(
                vocab_size=60, dim=32, hidden_dim=64, n_layers=2, n_heads=4, pad_token_id=0
            )
        ),
        captions,
    ),
    "mpnet": (lambda: hf.MPNetModel(hf.MPNetConfig(**ROBERTA)), roberta_captions),
}


def sharpened(model, gain=4.0):
    """Raise a model's linear weights, so that attention tells keys apart."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(gain)
    return model
