"""Heads on a frozen tower that need sums alone: prototypes in one round, and a linear map.

What touches private pairs is in `contributions` and `gradients`, and is bounded there, image by
image. All else works on public pairs or on what has been released, and costs no privacy.
"""

from fedvlm.heads.contributions import image_sums, image_terms
from fedvlm.heads.control import Control, fit_control
from fedvlm.heads.linear import (
    Candidates,
    LinearHead,
    head_gradients,
    image_directions,
    release_steps,
    train_head,
    whole_gradients,
)
from fedvlm.heads.posterior import Prior, Prototypes, posterior_prototypes, presence
from fedvlm.heads.rows import hashed_rows
from fedvlm.heads.scores import joint_images, joint_texts, mixed_scores
from fedvlm.heads.text import TextMap, random_features
from fedvlm.heads.whitening import Whitening, fit_whitening, identity_whitening

__all__ = [
    "Candidates",
    "Control",
    "LinearHead",
    "Prior",
    "Prototypes",
    "TextMap",
    "Whitening",
    "fit_control",
    "fit_whitening",
    "hashed_rows",
    "head_gradients",
    "identity_whitening",
    "image_directions",
    "image_sums",
    "image_terms",
    "joint_images",
    "joint_texts",
    "mixed_scores",
    "posterior_prototypes",
    "presence",
    "random_features",
    "release_steps",
    "train_head",
    "whole_gradients",
]
