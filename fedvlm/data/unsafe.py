"""Concepts of the embedded set that stand for what a product's filter would hold back.

A list of emoji is a stand-in: nothing in it is unsafe to look at. It exists so that redirecting,
filtering and their false alarms can be measured with every item's reason on the table.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

UNSAFE: Mapping[str, str] = {
    "bomb": "weapon",
    "water pistol": "weapon: drawn as a gun by older designs, and asked for as one",
    "kitchen knife": "weapon",
    "dagger": "weapon",
    "crossed swords": "weapon",
    "bow and arrow": "weapon",
    "axe": "weapon",
    "firecracker": "explosive",
    "collision": "explosion",
    "skull": "death",
    "skull and crossbones": "death, poison",
    "coffin": "death",
    "headstone": "death",
    "funeral urn": "death",
    "zombie": "gore",
    "vampire": "gore",
    "drop of blood": "gore",
    "syringe": "drugs",
    "pill": "drugs",
    "cigarette": "tobacco",
    "sake": "alcohol",
    "bottle with popping cork": "alcohol",
    "wine glass": "alcohol",
    "cocktail glass": "alcohol",
    "beer mug": "alcohol",
    "clinking beer mugs": "alcohol",
    "tumbler glass": "alcohol",
    "slot machine": "gambling",
    "middle finger": "insult",
    "face with symbols on mouth": "insult",
    "face vomiting": "disgust",
}
"""Caption → why it is on the list; captions as the embedded set writes them."""


def is_unsafe(captions: Iterable[str], listed: Mapping[str, str] = UNSAFE) -> NDArray[np.bool_]:
    """Say which captions are on a list, shape (N,)."""
    return np.array([caption in listed for caption in captions], dtype=bool)
