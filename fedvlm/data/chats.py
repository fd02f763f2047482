"""Chats as tables hold them: the turns before an answer, and the answer."""

import json
from dataclasses import dataclass
from typing import Any

MESSAGES, ANSWER = "messages", "answer"
_SHOWN = 60
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: system, user or assistant.
        text: What is said, without the image.
    """

    role: str
    text: str


Conversation = tuple[Turn, ...]


def question(text: str) -> Conversation:
    """Return the conversation of a single question about an image."""
    return (Turn("user", text),)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _text_of(content: Any) -> str:
    """Return what a message says; its image parts say nothing."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"a message's content must be a text or a list, got {_shown(content)}")
    said = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("text", "image"):
            raise ValueError(
                f"a message's parts are of type text or image, got {_shown(part)}; video and audio "
                "are not supported"
            )
        if part["type"] == "text":
            if not isinstance(part.get("text"), str):
                raise ValueError(f"a text part has no text: {_shown(part)}")
            said.append(part["text"])
    return "\n".join(said)


def split_messages(messages: Any) -> tuple[Conversation, str]:
    """Part a chat into what comes before its last answer, and that answer.

    Args:
        messages: A list of `{"role": …, "content": …}`, or the same as JSON text.

    Raises:
        ValueError: It isn't such a list, doesn't end with the assistant, or asks nothing; one line.
    """
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError) as error:
            raise ValueError("messages are not JSON") from error
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError("messages must be a list of a question and an answer at least")
    turns = []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise ValueError(f"a message's role is one of {', '.join(_ROLES)}: {_shown(message)}")
        turns.append(Turn(message["role"], _text_of(message.get("content")).strip()))
    *before, last = turns
    if last.role != "assistant" or not last.text:
        raise ValueError("messages must end with the assistant's answer, which is learned")
    if not any(turn.role == "user" for turn in before):
        raise ValueError("messages hold no question of the user's")
    return tuple(before), last.text


def to_text(conversation: Conversation) -> str:
    """Write a conversation as a column holds it."""
    return json.dumps([[turn.role, turn.text] for turn in conversation])


def from_text(text: str) -> Conversation:
    """Read what `to_text` wrote."""
    return tuple(Turn(role, said) for role, said in json.loads(text))
