"""The embedded generative default: a small LLaVA on a frozen stem, shipped with the library.

A stock Hugging Face `LlavaForConditionalGeneration`: the vision tower is that of the embedded dual
encoder (pixels are the stem's 320 x 3 x 3 feature map), then a projector of two layers and a small
causal decoder. `simulations/pretrain_answering.py` makes the checkpoint from public concepts.
"""

import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.data.conversation import Conversation, question
from fedvlm.data.dataset import ImageTextData
from fedvlm.data.questions import one_of_each_image
from fedvlm.errors import ConfigError
from fedvlm.models.embedded import EOS, PAD, VOCABULARY, embedded_config
from fedvlm.models.generative.model import GenerativeVLM
from fedvlm.models.generative.processor import (
    LoadedGenerative,
    PromptSource,
    noise_image,
    with_probe,
)
from fedvlm.models.stem import CHANNELS, GRID, IMAGE_SIZE, load_stem, stem_features

NAME = "embedded-vqa"
BOS = 2
IMAGE_TOKEN, IMAGE_TEXT = VOCABULARY, "<image>"
PLACES = GRID * GRID + 1
"""Tokens of an image: the class token and the stem's nine places."""
MAX_LENGTH = 96
_SIDE = 160


def embedded_answering_config():
    """Return the configuration of the embedded generative model, a `LlavaConfig`."""
    from transformers import LlamaConfig, LlavaConfig

    text = LlamaConfig(
        vocab_size=VOCABULARY + 8,  # room for the image's token, a multiple of 8
        hidden_size=_SIDE,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=embedded_config().vision_config,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=PLACES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )


def answering_checkpoint_dir() -> Path:
    """Return the folder of the shipped checkpoint."""
    return Path(str(resources.files("fedvlm.models.generative"))) / "embedded_checkpoint"


class EmbeddedAnswers:
    """Turns images into stem features, and prompts and answers into tokens.

    Args:
        tokenizer_file: A tokenizer whose prompts start with <bos> and end with nothing.
    """

    ends = (EOS,)
    padding = PAD
    length = MAX_LENGTH
    image_token = IMAGE_TOKEN
    image_texts = (IMAGE_TEXT,)

    def __init__(self, tokenizer_file: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_file(str(tokenizer_file))

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Return a question's ids: start, the image's places, the question.

        Raises:
            ConfigError: A chat of several turns.
        """
        if len(conversation) != 1:
            raise ConfigError(
                "the embedded generative model takes single questions; give `prompt` and `answer` "
                "in place of `messages`"
            )
        asked = self.tokenizer.encode(conversation[0].text, add_special_tokens=False).ids
        return [BOS, *[IMAGE_TOKEN] * PLACES, *asked]

    def prompt_length(self, conversation: Conversation) -> int:
        """Return how many tokens a prompt has."""
        return len(self.prompt_ids(conversation))

    def prompts(self, features: Tensor, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        """Return the inputs of feature maps (B, 320, 3, 3) with what is asked about each."""
        ids = [self.prompt_ids(one) for one in conversations]
        longest = max(map(len, ids))
        padded = torch.full((len(ids), longest), PAD, dtype=torch.int64)
        mask = torch.zeros_like(padded)
        for row, each in enumerate(ids):
            padded[row, : len(each)] = torch.tensor(each)
            mask[row, : len(each)] = 1
        return {"input_ids": padded, "attention_mask": mask, "pixel_values": features}

    def pixels(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the feature maps of images of shape (B, 96, 96, 3), uint8."""
        return load_stem()(torch.from_numpy(images))

    def source(
        self,
        data: ImageTextData,
        rows: NDArray[np.int64],
        progress: Callable[[str, int, int], None],
    ) -> PromptSource:
        """Return what looks feature maps up; those of `rows` are computed once, and cached."""
        images, place = one_of_each_image(data)
        features = stem_features(images, np.unique(place[rows]), progress)

        def prompts(
            rows: NDArray[np.int64], conversations: Sequence[Conversation]
        ) -> dict[str, Tensor]:
            seen = torch.from_numpy(features[place[rows]].astype(np.float32))
            return self.prompts(seen, conversations)

        return prompts

    def answer_ids(self, answer: str) -> list[int]:
        """Return an answer's ids, tokenised apart from its prompt, without its end."""
        return self.tokenizer.encode(answer, add_special_tokens=False).ids

    def text(self, ids: Sequence[int]) -> str:
        """Return what ids say, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def answering_tokenizer(content: str) -> str:
    """Make the generative model's tokenizer of the dual encoder's.

    Args:
        content: The embedded dual encoder's `tokenizer.json`.

    Returns:
        The same vocabulary with a token for an image's places, a decoder, and no end.
    """
    made = json.loads(content)
    made["added_tokens"].append(
        {**made["added_tokens"][-1], "id": IMAGE_TOKEN, "content": IMAGE_TEXT}
    )
    made["decoder"] = {"type": "BPEDecoder", "suffix": "</w>"}
    made["post_processor"] = None
    made["padding"] = made["truncation"] = None
    return json.dumps(made)


def build(state: dict[str, Tensor], tokenizer_file: Path, name: str = NAME) -> LoadedGenerative:
    """Build the model of its weights."""
    from transformers import LlavaForConditionalGeneration

    # Weights are set right after: skip transformers' own initialisation, and its random draws.
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(embedded_answering_config())
    fresh = embedded_answering_model(model)
    missing, unknown = fresh.load_state_dict({k: t.float() for k, t in state.items()}, strict=False)
    if unknown or [key for key in missing if key != "lm_head.weight"]:
        raise ConfigError(f"{name} is torn: {len(missing)} tensors missing, {len(unknown)} unknown")
    fresh.tie_weights()
    loaded = LoadedGenerative(GenerativeVLM(fresh.eval()), EmbeddedAnswers(tokenizer_file), name)
    pixels = np.asarray(noise_image(IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    features = torch.from_numpy(np.resize(pixels / 255, (2, CHANNELS, GRID, GRID)).copy())
    prompts = loaded.processor.prompts(features, [question("a dog?"), question("what is it?")])  # pyright: ignore
    return with_probe(loaded, prompts)


def embedded_answering_model(model: Any) -> Any:
    """Give a model on the meta device memory, and the buffers that no checkpoint holds."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model.to_empty(device="cpu")
    embeddings = model.model.vision_tower.embeddings
    embeddings.position_ids = torch.arange(PLACES).expand(1, -1)
    language: Any = model.model.language_model
    language.rotary_emb = LlamaRotaryEmbedding(model.config.text_config)
    return model


def load_embedded_answering() -> LoadedGenerative:
    """Load the embedded generative model and its processor."""
    from safetensors.torch import load_file

    folder = answering_checkpoint_dir()
    return build(load_file(folder / "model.safetensors"), folder / "tokenizer.json")
