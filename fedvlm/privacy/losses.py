"""Losses that differential privacy can be had for, each with the sensitivity that it costs.

DP-SGD clips the gradient of one unit's loss. That bounds what one example does only if no other
unit's loss depends on it, which CLIP's own loss violates.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.pairs import EncodedPairs

if TYPE_CHECKING:
    from fedvlm.mitigation.repairs import Repair

Batch = Mapping[str, Any]


class PrivateLoss(ABC):
    """A loss per unit, whose gradients are clipped one by one.

    Attributes:
        factor: How far one example moves the sum of clipped gradients, over the clip norm.
        rowwise: Whether row i of every layer's input belongs to unit i alone, so that gradients
            can be taken layer by layer; if not, each unit is differentiated by itself.
    """

    factor: float = 1.0
    rowwise: bool = False

    @abstractmethod
    def __call__(self, vlm: VLM, batch: Batch) -> Tensor:
        """Return the losses of a batch, shape (B,)."""

    def units(self, vlm: VLM, batch: Batch) -> tuple[Batch, Tensor | None]:
        """Return what is clipped one by one, and the weights of its clipped gradients.

        Args:
            vlm: A model with an adapter.
            batch: Inputs of the sampled examples.

        Returns:
            Inputs with a row a unit, and weights (U,), or None where each counts once.
        """
        return batch, None


class BankContrastive(PrivateLoss):
    """Contrast each pair with a public bank of negatives, in both directions.

    The bank is embedded beforehand and held fixed: no gradient flows through it, and a pair's
    loss depends on that pair only. Sensitivity: one clip norm.

    Args:
        images: Shape (M, D), unit rows: embeddings of public images.
        texts: Shape (M, D), unit rows: embeddings of public captions.
    """

    rowwise = True

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self._images = images.detach().clone()
        self._texts = texts.detach().clone()

    def __call__(self, vlm: VLM, batch: Batch) -> Tensor:
        """Return the losses of a batch of `image` and `text`, shape (B,)."""
        return self.of(vlm, vlm.encode_image(batch["image"]), vlm.encode_text(batch["text"]))

    def of(self, vlm: VLM, image: Tensor, text: Tensor) -> Tensor:
        """Return the losses of embedded pairs, each (B, D): shape (B,)."""
        own = (image * text).sum(dim=-1, keepdim=True)
        scale = vlm.logit_scale
        by_image = F.log_softmax(scale * torch.cat([own, image @ self._texts.T], dim=1), dim=1)
        by_text = F.log_softmax(scale * torch.cat([own, text @ self._images.T], dim=1), dim=1)
        return -(by_image[:, 0] + by_text[:, 0]) / 2


class Repaired(PrivateLoss):
    """Contrast with a public bank, and a mitigation's term of the same example.

    Everything in a row of the batch is made from one example and public data, so that the unit
    that is clipped is the example still: all its views and terms together cost one clip norm.

    Args:
        base: The loss with a public bank.
        repair: The term; rows of its `extras` stand under "extras" in the batch.
    """

    def __init__(self, base: BankContrastive, repair: "Repair") -> None:
        self._base = base
        self._repair = repair

    def __call__(self, vlm: VLM, batch: Batch) -> Tensor:
        """Return the losses of a batch of `image`, `text` and `extras`, shape (B,)."""
        image, text = vlm.encode_image(batch["image"]), vlm.encode_text(batch["text"])
        loss = self._base.of(vlm, image, text)
        term = self._repair.penalty(
            vlm, image, text, batch["extras"], lambda other: self._base.of(vlm, other, text)
        )
        return loss + self._repair.weight * term


class ClassPrompts(PrivateLoss):
    """Cross-entropy of an image over public class prompts, through both towers.

    The prompts go through the trainable text tower once a *unit*, not once a batch: hooks on
    layers would mix their K rows up with the B rows of the batch. Sensitivity: one clip norm.

    Args:
        prompts: Caption inputs of the K classes, shape (K, L).
    """

    def __init__(self, prompts: Mapping[str, Tensor]) -> None:
        self._prompts = dict(prompts)

    def __call__(self, vlm: VLM, batch: Batch) -> Tensor:
        """Return the losses of a batch of `image` and `label`, shape (B,)."""
        logits = vlm.encode_image(batch["image"]) @ vlm.encode_text(self._prompts).T
        return F.cross_entropy(vlm.logit_scale * logits, batch["label"], reduction="none")


class GroupedInfoNCE(PrivateLoss):
    """InfoNCE within groups that are fixed in advance; the unit that is clipped is a group.

    Adding or removing an example changes one group's gradient into another one, both within the
    clip norm. Sensitivity: two clip norms. `group_batch` makes the batches.
    """

    factor = 2.0

    def __call__(self, vlm: VLM, batch: Batch) -> Tensor:
        """Return the losses of groups: `image` and `text` of (G, m, …), `mask` of (G, m)."""
        mask = batch["mask"]
        groups, places = mask.shape
        image = vlm.encode_image(_rows(batch["image"])).view(groups, places, -1)
        text = vlm.encode_text(_rows(batch["text"])).view(groups, places, -1)
        logits = vlm.logit_scale * image @ text.transpose(1, 2)
        both = (mask[:, :, None] & mask[:, None, :]) | torch.eye(places, dtype=torch.bool)
        logits = logits.masked_fill(~both, -1e9)
        eye = torch.eye(places)
        rowwise = -(F.log_softmax(logits, dim=2) * eye).sum(dim=2)
        columns = -(F.log_softmax(logits, dim=1) * eye).sum(dim=1)
        weight = mask.to(logits.dtype)
        return ((rowwise + columns) / 2 * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def group_batch(
    pairs: EncodedPairs,
    indices: NDArray[np.int64],
    groups: int,
    places: int,
    seed: ExperimentSeed,
) -> dict[str, Any]:
    """Deal sampled examples into groups by their own number alone.

    An example's group depends on nothing but the example, so that no other group changes when it
    comes or goes; one that finds its group full is left out.

    Args:
        pairs: The data set's inputs.
        indices: Shape (n,), ascending, n >= 1: the sampled examples.
        groups: Number of groups G.
        places: Examples m that a group holds.
        seed: Deals the groups; public.

    Returns:
        `image` and `text` of (G', m, …), `mask` of (G', m), over the G' groups with a member.
    """
    members: dict[int, list[int]] = {}
    for index in indices.tolist():
        group = members.setdefault(seed.number("group", index) % groups, [])
        if len(group) < places:
            group.append(index)
    # A free place repeats a member of its own group, masked out of the loss: what is wrong with
    # one example then stays in its group.
    chosen = np.array([group + group[:1] * (places - len(group)) for group in members.values()])
    mask = np.array([[place < len(group) for place in range(places)] for group in members.values()])
    count = len(members)
    flat = examples(pairs, chosen.reshape(-1))

    def shaped(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: v.view(count, places, *v.shape[1:]) for key, v in inputs.items()}

    return {
        "image": shaped(flat["image"]),
        "text": shaped(flat["text"]),
        "mask": torch.from_numpy(mask),
    }


def needs_loop(vlm: VLM) -> bool:
    """Return whether each unit must be differentiated by a pass of its own.

    SigLIP 2 resizes its position embeddings to each image's shape (NaFlex), which it reads as
    Python numbers: `vmap` can't. One unit after the other gives the same gradients, more slowly.
    """
    config: Any = vlm.backbone.config
    return config.model_type == "siglip2"


def examples(pairs: EncodedPairs, indices: NDArray[np.int64]) -> dict[str, Any]:
    """Return the `image` and `text` inputs of some pairs, one row each."""
    return {
        "image": pairs.images(indices),
        "text": pairs.captions(pairs.caption_of[indices]),
    }


def bank(vlm: VLM, pairs: EncodedPairs, public: NDArray[np.int64]) -> BankContrastive:
    """Embed public pairs with the model as it is, and contrast with them.

    Raises:
        ConfigError: There is no public pair.
    """
    if not len(public):
        raise ConfigError("example-level DP contrasts with public pairs, and the data has none")
    images = vlm.embed(pairs.images(public), "image")
    texts = vlm.embed(pairs.captions(pairs.caption_of[public]), "text")
    return BankContrastive(images, texts)


class LogitDP(PrivateLoss):
    """InfoNCE within groups, clipped similarity by similarity (Kong et al. 2023, algorithm 1).

    The gradient is Σ_ij ∂L/∂Z_ij · clip(∇Z_ij): what is clipped is the gradient of each similarity
    Z_ij of an image and a caption, and what weighs it is the loss' derivative, at most 1/τ.
    Sensitivity: `logit_dp_sensitivity` for sums instead of means, and twice that, since an example
    that leaves a full group may let another one in. At CLIP's τ this is weak: see there.

    Args:
        temperature: τ, positive.
        places: Examples m that a group of `group_batch` holds, at least 2.
    """

    rowwise = True

    def __init__(self, temperature: float, places: int) -> None:
        if places < 2:
            raise ConfigError(f"a group that contrasts has at least 2 places, got {places}")
        self.factor = 2 * places * logit_dp_sensitivity(1.0, temperature, places)
        self._temperature = temperature
        self._places = places

    def __call__(self, vlm: VLM, batch: Batch) -> Tensor:
        """Return the similarities of a batch of `image` and `text`, shape (U,)."""
        image, text = vlm.encode_image(batch["image"]), vlm.encode_text(batch["text"])
        return (image * text).sum(dim=-1)

    def units(self, vlm: VLM, batch: Batch) -> tuple[Batch, Tensor]:
        """Return all pairs of an image and a caption of one group, and ∂L/∂Z of each.

        Raises:
            ConfigError: The groups have other places than the sensitivity is for.
        """
        mask = batch["mask"]
        groups, places = mask.shape
        if places != self._places:
            raise ConfigError(f"expected groups of {self._places} places, got {places}")
        with torch.no_grad():
            image = vlm.encode_image(_rows(batch["image"])).view(groups, places, -1)
            text = vlm.encode_text(_rows(batch["text"])).view(groups, places, -1)
            # An example that is not finite takes no part, so that the rest of its group stays.
            mask = mask & torch.isfinite(image).all(dim=2) & torch.isfinite(text).all(dim=2)
            image, text = (torch.nan_to_num(x, 0.0, 0.0, 0.0) for x in (image, text))
            both = mask[:, :, None] & mask[:, None, :]
            logits = (image @ text.transpose(1, 2) / self._temperature).masked_fill(~both, -1e9)
            softmax = (logits.softmax(dim=1) + logits.softmax(dim=2)) / 2
            weights = (softmax - torch.eye(places)) / self._temperature
        group, i, j = both.nonzero(as_tuple=True)
        return {
            "image": {key: value[group, i] for key, value in batch["image"].items()},
            "text": {key: value[group, j] for key, value in batch["text"].items()},
        }, weights[group, i, j]


def _rows(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the places of all groups below one another."""
    return {key: value.flatten(0, 1) for key, value in inputs.items()}


def refuse_infonce() -> NoReturn:
    """Refuse CLIP's loss under DP, and say why.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        "InfoNCE is refused under DP: every example is a negative of every other, so replacing one "
        "pair changes all the clipped gradients (65 clip norms were measured in a batch of 64, "
        "where the noise is made for at most 2); use a public bank of negatives, class prompts or "
        "grouped InfoNCE"
    )


def logit_dp_sensitivity(clip_norm: float, temperature: float, batch: int) -> float:
    """Return what one pair moves a Logit-DP gradient (Kong et al. 2023, arXiv 2310.03104).

    Δ = (B/τ)·[2/n + (2(n−1)/n)·e^(2/τ) / (e^(2/τ) + n − 1)] under removal with a fixed 1/n, where
    the gradient of each similarity is clipped to B. The factor 1/τ is the chain rule's. At CLIP's
    τ = 0.01 it is about 200·B: no benefit.

    Args:
        clip_norm: B.
        temperature: τ, positive.
        batch: n, at least 1.

    Example:
        >>> round(logit_dp_sensitivity(1.0, 0.01, 64))
        200
    """
    if clip_norm <= 0 or temperature <= 0 or batch < 1:
        raise ConfigError("Logit-DP needs clip_norm > 0, temperature > 0 and batch >= 1")
    # e^(2/τ) / (e^(2/τ) + n − 1), written so that it can't overflow.
    most = 1 / (1 + (batch - 1) * np.exp(-2 / temperature))
    return float(clip_norm / temperature * (2 / batch + 2 * (batch - 1) / batch * most))
