"""What is adapted."""

from dataclasses import dataclass
from typing import ClassVar

from fedvlm.config._section import Section, setting


@dataclass(frozen=True)
class ModelConfig(Section):
    """The base model; a node of a deployment has its own copy, by its `node.toml`."""

    table: ClassVar[str] = "model"

    name: str = setting(
        "embedded",
        '"embedded", or a folder or hub name of a CLIP, SigLIP or SigLIP 2. Nodes are told '
        "whether it is the embedded one, and nothing else.",
        flat="model",
    )
