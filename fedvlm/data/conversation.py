"""What is asked about the images of a data set, and what is answered."""

from collections.abc import Sequence

from fedvlm.data.chats import (
    ANSWER,
    MESSAGES,
    Conversation,
    Turn,
    from_text,
    question,
    split_messages,
    to_text,
)
from fedvlm.data.dataset import ImageTextData

PROMPT_KEYS = ("prompt", "question", "instruction")
DEFAULT_PROMPT = "what is this?"
"""What is asked where a table has captions and no questions."""

__all__ = [
    "DEFAULT_PROMPT",
    "PROMPT_KEYS",
    "Conversation",
    "Turn",
    "answers_of",
    "conversations_of",
    "from_text",
    "question",
    "split_messages",
    "to_text",
]


def conversations_of(data: ImageTextData) -> list[Conversation]:
    """Return what is said before each answer of a data set; a fixed question where nothing is."""
    chats = data.more.get(MESSAGES)
    key = next((key for key in PROMPT_KEYS if key in data.more), None)
    out = []
    for row in range(len(data)):
        if chats is not None and chats[row]:
            out.append(from_text(chats[row]))
        else:
            asked = data.more[key][row].strip() if key is not None else ""
            out.append(question(asked or DEFAULT_PROMPT))
    return out


def answers_of(data: ImageTextData) -> Sequence[str]:
    """Return the answers: the column `answer`, or the captions where there is none."""
    return data.more.get(ANSWER, data.captions)
