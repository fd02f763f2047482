"""What differs between families of generative VLMs, by Hugging Face's `model_type`."""

from dataclasses import dataclass

_PROJECTIONS = r"(q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2)"
_LANGUAGE_MODEL = rf"(.*\.)?language_model\..*\.{_PROJECTIONS}"
_TEXT_MODEL = rf"(.*\.)?text_model\..*\.{_PROJECTIONS}"


@dataclass(frozen=True)
class Family:
    """How one family is fed and adapted.

    Attributes:
        targets: Regular expression over full module names: the linear layers of the language
            model, and none of the vision tower. A bare `q_proj` would hit both.
        answer_type: What an answer's tokens are in `token_type_ids`; PaliGemma attends to its
            prompt in both directions (0) and to the answer causally (1).
        plain: How a question is written for models without a chat template.
    """

    targets: str = _LANGUAGE_MODEL
    answer_type: int = 0
    plain: str = "{image}\n{question}\n"


FAMILIES: dict[str, Family] = {
    "llava": Family(plain="USER: {image}\n{question} ASSISTANT:"),
    "llava_next": Family(plain="USER: {image}\n{question} ASSISTANT:"),
    "llava_onevision": Family(),
    "qwen2_vl": Family(),
    "qwen2_5_vl": Family(),
    "qwen3_vl": Family(),
    "smolvlm": Family(targets=_TEXT_MODEL),
    "idefics3": Family(targets=_TEXT_MODEL),
    # Its processor puts the image's tokens before the text and a line break behind it.
    "paligemma": Family(answer_type=1, plain="{question}"),
    # Its processor puts the image's tokens before the text. OPT's feed-forward layers see the
    # tokens of all examples as rows of one matrix, which no layer-wise clipping can part: they are
    # left out.
    "blip-2": Family(
        targets=r"(.*\.)?language_model\..*\.(q_proj|k_proj|v_proj|out_proj)",
        plain="Question: {question} Answer:",
    ),
    "internvl": Family(),
    "gemma3": Family(),
}
