"""Tiny random instances of the real architectures, saved as their own save methods write them.

Tokenizers and processors are built here from scratch; nothing is downloaded.
"""

import csv
import json
from pathlib import Path

LM = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
CORPUS = ["a red circle is a green square or a blue bar what colour is this shape USER ASSISTANT"]


def chat_template(image: str) -> str:
    """Return a chat template of the usual kind, with what stands for an image."""
    return (
        "{% for m in messages %}{{ m['role'] }} {% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}" + image + "{% else %}{{ p['text'] }}{% endif %}"
        "{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
    )


def tokenizer(special: list[str], template: str | None = None, **named: str):
    """Train a byte-level BPE tokenizer, whose merges cross the border of prompt and answer."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", *special],
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS * 20, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special,
        extra_special_tokens=named,
    )
    made.chat_template = template
    return made


def still(base):
    """Return a processor class that can be built without its half for video."""

    class Still(base):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name == "video_processor" and argument is None:
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

    Still.__name__ = base.__name__
    return Still


def llava():
    import transformers as t

    tok = tokenizer(["<image>"], chat_template("<image>"), image_token="<image>")
    config = t.LlavaConfig(
        text_config=t.LlamaConfig(vocab_size=len(tok), **LM),
        vision_config=t.CLIPVisionConfig(**VISION),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    square = {"height": 28, "width": 28}
    pixels = t.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=square)
    processor = t.LlavaProcessor(
        pixels,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tok.chat_template,
    )
    return t.LlavaForConditionalGeneration, config, processor


def llava_next():
    import transformers as t

    tok = tokenizer(["<image>"], chat_template("<image>"), image_token="<image>")
    grid = [[28, 28], [28, 56]]
    config = t.LlavaNextConfig(
        text_config=t.LlamaConfig(vocab_size=len(tok), **LM),
        vision_config=t.CLIPVisionConfig(**VISION),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    pixels = t.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=grid,
    )
    processor = t.LlavaNextProcessor(
        pixels,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tok.chat_template,
    )
    return t.LlavaNextForConditionalGeneration, config, processor


def llava_onevision():
    import transformers as t

    tok = tokenizer(
        ["<image>", "<video>"],
        chat_template("<image>"),
        image_token="<image>",
        video_token="<video>",
    )
    grid = [[28, 28], [28, 56]]
    config = t.LlavaOnevisionConfig(
        text_config=t.Qwen2Config(vocab_size=len(tok), **LM),
        vision_config=t.SiglipVisionConfig(**VISION),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    pixels = t.LlavaOnevisionImageProcessorPil(
        size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    processor = still(t.LlavaOnevisionProcessor)(
        pixels,
        tok,
        None,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=tok.chat_template,
    )
    return t.LlavaOnevisionForConditionalGeneration, config, processor


_QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def _qwen_tokenizer():
    return tokenizer(
        _QWEN,
        chat_template("<|vision_start|><|image_pad|><|vision_end|>"),
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )


def _qwen_ids(tok) -> dict[str, int]:
    to_id = tok.convert_tokens_to_ids
    return {
        "image_token_id": to_id("<|image_pad|>"),
        "video_token_id": to_id("<|video_pad|>"),
        "vision_start_token_id": to_id("<|vision_start|>"),
        "vision_end_token_id": to_id("<|vision_end|>"),
    }


_QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
}
_MROPE = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}


def _qwen(model, config_class, processor_class, rope, vision, **pixels):
    import transformers as t

    tok = _qwen_tokenizer()
    config = config_class(
        text_config={"vocab_size": len(tok), "rope_scaling": dict(rope), **LM},
        vision_config=_QWEN_VISION | vision,
        **_qwen_ids(tok),
    )
    processor = still(processor_class)(
        t.Qwen2VLImageProcessorPil(**pixels), tok, None, chat_template=tok.chat_template
    )
    return model, config, processor


def qwen2_vl():
    import transformers as t

    return _qwen(
        t.Qwen2VLForConditionalGeneration,
        t.Qwen2VLConfig,
        t.Qwen2VLProcessor,
        _MROPE,
        {"embed_dim": 32, "mlp_ratio": 2},
        min_pixels=28 * 28,
        max_pixels=56 * 56 * 2,
    )


def qwen2_5_vl():
    import transformers as t

    return _qwen(
        t.Qwen2_5_VLForConditionalGeneration,
        t.Qwen2_5_VLConfig,
        t.Qwen2_5_VLProcessor,
        _MROPE,
        {
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        min_pixels=28 * 28,
        max_pixels=56 * 56 * 2,
    )


def qwen3_vl():
    import transformers as t

    return _qwen(
        t.Qwen3VLForConditionalGeneration,
        t.Qwen3VLConfig,
        t.Qwen3VLProcessor,
        {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        {
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "patch_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        patch_size=16,
        min_pixels=32 * 32,
        max_pixels=64 * 64 * 2,
    )


def _idefics(model, config_class, pixels_class, processor_class, text, video: bool):
    parts = [f"<row_{a}_col_{b}>" for a in (1, 2) for b in (1, 2)]
    tok = tokenizer(
        ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *parts],
        chat_template("<image>"),
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    config = config_class(
        text_config=text(len(tok)),
        vision_config={**VISION, "image_size": 56},
        scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )
    pixels = pixels_class(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 56}, do_image_splitting=False
    )
    chosen = still(processor_class) if video else processor_class
    given = (pixels, tok, None) if video else (pixels, tok)
    return model, config, chosen(*given, image_seq_len=4, chat_template=tok.chat_template)


def smolvlm():
    import transformers as t

    return _idefics(
        t.SmolVLMForConditionalGeneration,
        t.SmolVLMConfig,
        t.SmolVLMImageProcessorPil,
        t.SmolVLMProcessor,
        lambda size: {"model_type": "llama", "vocab_size": size, **LM},
        True,
    )


def idefics3():
    import transformers as t

    return _idefics(
        t.Idefics3ForConditionalGeneration,
        t.Idefics3Config,
        t.Idefics3ImageProcessorPil,
        t.Idefics3Processor,
        lambda size: t.LlamaConfig(vocab_size=size, **LM),
        False,
    )


def paligemma():
    import transformers as t

    tok = tokenizer(["<image>"], image_token="<image>")
    config = t.PaliGemmaConfig(
        # Its processor adds 1,152 tokens for places and segments to any tokenizer.
        text_config={"model_type": "gemma", "vocab_size": len(tok) + 1200, **LM},
        vision_config={"model_type": "siglip_vision_model", "projection_dim": 32, **VISION},
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    pixels = t.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pixels.image_seq_length = 4
    return t.PaliGemmaForConditionalGeneration, config, t.PaliGemmaProcessor(pixels, tok)


def blip2():
    import transformers as t

    tok = tokenizer(["<image>"])
    decoder = t.OPTConfig(
        vocab_size=len(tok),
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    query = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "encoder_hidden_size": 32,
        "vocab_size": 100,
    }
    config = t.Blip2Config(
        vision_config=dict(VISION),
        qformer_config=query,
        text_config=decoder.to_dict(),
        num_query_tokens=4,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    pixels = t.BlipImageProcessorPil(size={"height": 28, "width": 28})
    return t.Blip2ForConditionalGeneration, config, t.Blip2Processor(pixels, tok, 4)


def internvl():
    import transformers as t

    tok = tokenizer(
        ["<IMG_CONTEXT>", "<img>", "</img>", "<video>"],
        chat_template("<IMG_CONTEXT>"),
        context_image_token="<IMG_CONTEXT>",
        start_image_token="<img>",
        end_image_token="</img>",
        video_token="<video>",
    )
    config = t.InternVLConfig(
        text_config=t.Qwen2Config(vocab_size=len(tok), **LM),
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    pixels = t.GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=False)
    processor = still(t.InternVLProcessor)(
        pixels, tok, None, image_seq_length=1, chat_template=tok.chat_template
    )
    return t.InternVLForConditionalGeneration, config, processor


def gemma3():
    import transformers as t

    tok = tokenizer(
        ["<image_soft_token>", "<start_of_image>", "<end_of_image>"],
        chat_template("<start_of_image>"),
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    to_id = tok.convert_tokens_to_ids
    config = t.Gemma3Config(
        text_config={"vocab_size": len(tok), "sliding_window": 64, **LM},
        vision_config={"model_type": "siglip_vision_model", **VISION, "image_size": 56},
        mm_tokens_per_image=4,
        image_token_index=to_id("<image_soft_token>"),
        boi_token_index=to_id("<start_of_image>"),
        eoi_token_index=to_id("<end_of_image>"),
    )
    pixels = t.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = t.Gemma3Processor(pixels, tok, image_seq_length=4, chat_template=tok.chat_template)
    return t.Gemma3ForConditionalGeneration, config, processor


FAMILIES = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "paligemma": paligemma,
    "blip-2": blip2,
    "internvl": internvl,
    "gemma3": gemma3,
}


# What a processor is built with beside its parts.
_TOLD = ("image_seq_len", "num_image_tokens", "vision_feature_select_strategy", "image_seq_length")


def save_family(name: str, folder: Path) -> None:
    """Save a tiny random instance of a family with its tokenizer and processor."""
    import torch

    model_class, config, processor = FAMILIES[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
    model.save_pretrained(folder)
    if getattr(processor, "video_processor", 0) is not None:
        processor.save_pretrained(folder)
        return
    # Without its half for video a processor can't save itself: its parts can.
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    told = {key: getattr(processor, key) for key in _TOLD if hasattr(processor, key)}
    text = json.dumps({"processor_class": type(processor).__name__, **told})
    (folder / "processor_config.json").write_text(text)


def save_questions(folder: Path, drawn) -> None:
    """Save a table of triples about drawn shapes: (name, colour, shape, PNG) each."""
    (folder / "images").mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt", "answer"])
        for name, colour, shape, png in drawn:
            (folder / "images" / name).write_bytes(png)
            writer.writerow([name, "what colour is this shape", colour])
            writer.writerow([name, "what shape is this", shape])
