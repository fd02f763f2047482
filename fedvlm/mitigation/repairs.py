"""What a client adds to its loss, example by example: composes with secure sums and with DP.

A repair here sees one example and public data. What would couple examples (distances of
distributions over a batch, the classifier of `adversary`) has no place here: under example-level DP
no clip bounds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.errors import ConfigError
from fedvlm.models.processor import ImageInputs
from fedvlm.models.vlm import VLM

if TYPE_CHECKING:
    from fedvlm.training.pairs import EncodedPairs

Rows = NDArray[np.int64]
Extras = Mapping[str, Any]
Base = Callable[[Tensor], Tensor]
"""The loss that images would have beside the batch's captions."""


class Repair(ABC):
    """A term of each example's own loss.

    Attributes:
        weight: λ, at least 0.
    """

    weight: float

    def begun(self, vlm: VLM, pairs: "EncodedPairs", rows: Rows) -> "Repair | None":
        """Return what a client trains with in one round: this, where nothing is kept.

        Args:
            vlm: The model as the round found it.
            pairs: The data set's inputs.
            rows: Shape (n,), the client's examples.
        """
        return self

    @abstractmethod
    def extras(self, vlm: VLM, rows: Rows, inputs: Mapping[str, Tensor]) -> Extras:
        """Prepare what the term needs, without gradients to the adapter.

        Args:
            vlm: The model as it is.
            rows: Shape (B,), the examples.
            inputs: Their image inputs.

        Returns:
            Tensors whose first axis is the example: row i is made from example i alone.
        """

    @abstractmethod
    def penalty(
        self, vlm: VLM, images: Tensor, texts: Tensor, extras: Extras, base: Base
    ) -> Tensor:
        """Return each example's term, shape (B,), or their mean.

        Args:
            vlm: The model.
            images: Shape (B, D), unit rows.
            texts: Shape (B, D), unit rows.
            extras: From `extras`.
            base: The loss of other images in these images' place.
        """


def _embedded(vlm: VLM, inputs: Mapping[str, Tensor], which: str) -> Tensor:
    """Embed inputs without gradients, in evaluation mode."""
    return vlm.embed(inputs, which).clone()


@dataclass(frozen=True)
class Counterfactual(Repair):
    """Train on an image's other views too: the loss is averaged over views, then clipped once.

    Attributes:
        views: Inputs of each view of the data set's images, by row.
        weight: λ: 1 counts all other views together as much as the image itself.
    """

    views: tuple[ImageInputs, ...]
    weight: float = 1.0

    def extras(self, vlm: VLM, rows: Rows, inputs: Mapping[str, Tensor]) -> Extras:
        """Return inputs of each view."""
        return {f"view{n}": view(rows) for n, view in enumerate(self.views)}

    def penalty(
        self, vlm: VLM, images: Tensor, texts: Tensor, extras: Extras, base: Base
    ) -> Tensor:
        """Return the mean loss of the views."""
        losses = [base(vlm.encode_image(extras[f"view{n}"])) for n in range(len(self.views))]
        return torch.stack(losses).mean(dim=0)


@dataclass(frozen=True)
class Robust(Repair):
    """Embedding-space adversarial training after FARE (Schlarmann et al. 2024, equation 3).

    min max ‖f(x + δ) − f(x)‖² over δ within a share of the input's own spread. The embedded model's
    input is its stem's feature map: robustness is claimed for features then, not for pixels.

    Attributes:
        radius: L∞ radius over the standard deviation of the example's input.
        steps: Of the inner maximisation.
        weight: λ.
    """

    radius: float = 0.1
    steps: int = 2
    weight: float = 1.0

    def extras(self, vlm: VLM, rows: Rows, inputs: Mapping[str, Tensor]) -> Extras:
        """Return x + δ of each example, found from that example alone."""
        pixels = inputs["pixel_values"]
        reach = self.radius * pixels.flatten(1).std(dim=1).view(-1, *[1] * (pixels.ndim - 1))
        was, others = vlm.training, {k: v for k, v in inputs.items() if k != "pixel_values"}
        vlm.eval()
        with torch.no_grad():
            clean = vlm.encode_image(inputs)
        # A fixed start: at δ = 0 the distance has no gradient.
        delta = reach * torch.where(
            torch.arange(pixels[0].numel()).view(pixels[0].shape) % 2 == 0, 0.5, -0.5
        )
        for _ in range(self.steps):
            x = (pixels + delta).detach().requires_grad_(True)
            far = ((vlm.encode_image({**others, "pixel_values": x}) - clean) ** 2).sum()
            (gradient,) = torch.autograd.grad(far, x)
            delta = (delta + reach * gradient.sign()).clamp(-reach, reach)
        vlm.train(was)
        return {"adversarial": {**others, "pixel_values": (pixels + delta).detach()}}

    def penalty(
        self, vlm: VLM, images: Tensor, texts: Tensor, extras: Extras, base: Base
    ) -> Tensor:
        """Return ‖f(x + δ) − f(x)‖²; the clean side is held fixed."""
        moved = vlm.encode_image(extras["adversarial"])
        return ((moved - images.detach()) ** 2).sum(dim=-1)


class Anchor(Repair):
    """Keep public knowledge: contrast the public pair nearest to each example (after ARF, 2024).

    Args:
        vlm: The model before training, which finds the nearest.
        images: Inputs of M public images.
        texts: Inputs of their captions.
        weight: λ.
    """

    def __init__(
        self,
        vlm: VLM,
        images: Mapping[str, Tensor],
        texts: Mapping[str, Tensor],
        weight: float = 1.0,
    ) -> None:
        self.weight = weight
        self._images, self._texts = dict(images), dict(texts)
        self._frozen = _embedded(vlm, images, "image")
        self._captions = _embedded(vlm, texts, "text")

    def extras(self, vlm: VLM, rows: Rows, inputs: Mapping[str, Tensor]) -> Extras:
        """Return the nearest public pair of each example."""
        nearest = (_embedded(vlm, inputs, "image") @ self._frozen.T).argmax(dim=1)
        return {
            "anchor_image": {key: value[nearest] for key, value in self._images.items()},
            "anchor_text": {key: value[nearest] for key, value in self._texts.items()},
            "anchor": nearest,
        }

    def penalty(
        self, vlm: VLM, images: Tensor, texts: Tensor, extras: Extras, base: Base
    ) -> Tensor:
        """Return the cross-entropy of the anchor among public captions, and of its caption."""
        image = vlm.encode_image(extras["anchor_image"])
        text = vlm.encode_text(extras["anchor_text"])
        scale = vlm.logit_scale
        own = scale * (image * text).sum(dim=-1)
        others = torch.ones(len(image), len(self._captions), dtype=torch.bool)
        others = others & (extras["anchor"][:, None] != torch.arange(len(self._captions)))
        by_image = (scale * image @ self._captions.T).masked_fill(~others, -1e9)
        by_text = (scale * text @ self._frozen.T).masked_fill(~others, -1e9)
        return (
            -own
            + (
                torch.logaddexp(own, by_image.logsumexp(dim=1))
                + torch.logaddexp(own, by_text.logsumexp(dim=1))
            )
            / 2
        )


class Redirect(Repair):
    """Lead listed captions and images away to a safe place, and keep what is safe (Safe-CLIP).

    The target of a listed caption is the *nearest* safe public caption as the model before training
    embeds it (SafeR-CLIP), which costs less of the rest than an arbitrary one. With a refusal
    caption as the only target this is knowledge sanitisation: what is on a forget list is answered
    with the refusal.

    Args:
        vlm: The model before training.
        listed: Inputs of L listed captions.
        targets: Inputs of T safe captions.
        keep: Inputs of K public captions whose embedding shall stay.
        rows: Shape (n,), rows of the data set whose caption is listed, or that are to be
            forgotten: their images are led away too. Every row keeps its own loss, and so does a
            listed one: what it teaches is hidden, and comes back by tuning (docs/mitigations.md).
        weight: λ.

    Raises:
        ConfigError: Nothing is listed, or there is no target.
    """

    def __init__(
        self,
        vlm: VLM,
        listed: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        keep: Mapping[str, Tensor],
        rows: Rows,
        weight: float = 1.0,
    ) -> None:
        sizes = [len(next(iter(one.values()))) for one in (listed, targets, keep)]
        if min(sizes) < 1:
            raise ConfigError("redirecting needs a listed caption, a target and one to keep")
        self.weight = weight
        self._rows = np.asarray(rows, dtype=np.int64)
        self._listed, self._keep = dict(listed), dict(keep)
        here, there = _embedded(vlm, listed, "text"), _embedded(vlm, targets, "text")
        self._targets = there[(here @ there.T).argmax(dim=1)]
        self._places = there
        self._kept = _embedded(vlm, keep, "text")
        self._sizes = sizes

    def extras(self, vlm: VLM, rows: Rows, inputs: Mapping[str, Tensor]) -> Extras:
        """Return a listed caption, a kept one, and where a listed image shall go, by row."""
        one = torch.from_numpy(rows % self._sizes[0])
        other = torch.from_numpy(rows % self._sizes[2])
        nearest = (_embedded(vlm, inputs, "image") @ self._places.T).argmax(dim=1)
        return {
            "listed": {key: value[one] for key, value in self._listed.items()},
            "safe": self._targets[one],
            "keep": {key: value[other] for key, value in self._keep.items()},
            "kept": self._kept[other],
            "is_listed": torch.from_numpy(np.isin(rows, self._rows)).float(),
            "image_safe": self._places[nearest],
        }

    def penalty(
        self, vlm: VLM, images: Tensor, texts: Tensor, extras: Extras, base: Base
    ) -> Tensor:
        """Return how far captions and listed images are from where they shall be, in cosines."""
        led = 1 - (vlm.encode_text(extras["listed"]) * extras["safe"]).sum(dim=-1)
        kept = 1 - (vlm.encode_text(extras["keep"]) * extras["kept"]).sum(dim=-1)
        moved = 1 - (images * extras["image_safe"]).sum(dim=-1)
        return led + kept + extras["is_listed"] * moved
