"""Private inference of this library's models: the owner's and the client's side of `fedvlm infer`.

The cryptography is `secure.smpc`; here are the models, the images and the command line.
"""

from fedvlm.inference.owner import OwnedModel, compile_model, load_owned
from fedvlm.inference.preparation import Preparation, read_images, read_preparation

__all__ = [
    "OwnedModel",
    "Preparation",
    "compile_model",
    "load_owned",
    "read_images",
    "read_preparation",
]
