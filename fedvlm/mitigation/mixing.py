"""Terms against over-fitting: pairs mixed with public ones, and a floor under each loss."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedvlm.errors import ConfigError
from fedvlm.mitigation.repairs import Base, Extras, Repair, Rows
from fedvlm.models.vlm import VLM


class MixGen(Repair):
    """Train on each pair mixed with a public one: ½x + ½x′, captions joined (Hao et al. 2023).

    The partner is public and fixed by the pair's number, so that an example's term depends on no
    other example. The mixed pair is contrasted with the other public ones. The embedded model's
    input is its stem's feature map: that is what is mixed then.

    Args:
        vlm: The model before training, which embeds the public pairs.
        images: Inputs of M public images, M at least 2.
        texts: Inputs of their captions.
        rows: Shape (n,), ascending: rows of the data set that will be trained on.
        joined: Inputs of n captions: each row's own, joined with that of its `partner`.
        weight: λ.

    Raises:
        ConfigError: Fewer than two public pairs, or another number of joined captions than rows.
    """

    def __init__(
        self,
        vlm: VLM,
        images: Mapping[str, Tensor],
        texts: Mapping[str, Tensor],
        rows: Rows,
        joined: Mapping[str, Tensor],
        weight: float = 1.0,
    ) -> None:
        self.weight = weight
        self._public = images["pixel_values"]
        if len(self._public) < 2 or len(joined["input_ids"]) != len(rows):
            raise ConfigError("mixing needs two public pairs, and a joined caption for each row")
        self._rows, self._joined = rows, dict(joined)
        self._images = vlm.embed(images, "image").clone()
        self._texts = vlm.embed(texts, "text").clone()

    @staticmethod
    def partner(rows: Rows, public: int) -> Rows:
        """Return which of so many public pairs each row is mixed with: decided by its number."""
        return rows % public

    def extras(self, vlm: VLM, rows: Rows, inputs: Mapping[str, Tensor]) -> Extras:
        """Return each example's mixed image and joined caption."""
        place = np.searchsorted(self._rows, rows).clip(max=len(self._rows) - 1)
        if not (self._rows[place] == rows).all():
            raise ConfigError("a mixed pair was asked for of a row that none was made of")
        other = torch.from_numpy(self.partner(rows, len(self._public)))
        chosen = torch.from_numpy(place)
        mixed = 0.5 * inputs["pixel_values"] + 0.5 * self._public[other]
        return {
            "mixed": {**inputs, "pixel_values": mixed},
            "joined": {key: value[chosen] for key, value in self._joined.items()},
            "partner": other,
        }

    def penalty(
        self, vlm: VLM, images: Tensor, texts: Tensor, extras: Extras, base: Base
    ) -> Tensor:
        """Return the cross-entropy of the mixed pair among public ones, in both directions."""
        image, text = vlm.encode_image(extras["mixed"]), vlm.encode_text(extras["joined"])
        scale = vlm.logit_scale
        own = scale * (image * text).sum(dim=-1)
        # The partner is half right: it is no negative.
        partner = extras["partner"][:, None] == torch.arange(len(self._texts))
        by_image = (scale * image @ self._texts.T).masked_fill(partner, -1e9).logsumexp(dim=1)
        by_text = (scale * text @ self._images.T).masked_fill(partner, -1e9).logsumexp(dim=1)
        return -own + (torch.logaddexp(own, by_image) + torch.logaddexp(own, by_text)) / 2


@dataclass(frozen=True)
class Flood(Repair):
    """Keep the loss from falling below a floor: `|L − b| + b` (Ishida et al. 2020, equation 2).

    What a membership attack reads is that members' losses are lower than others'. With the floor at
    the loss of pairs that the model knows without having trained on them, members sink no further.
    Under example-level DP the floor holds for each example; else for the batch's mean.

    Attributes:
        floor: b, in nats, at least 0: made from public data.
        weight: 1 turns the gradient round below the floor; a half stops it there.
    """

    floor: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.floor >= 0:
            raise ConfigError(f"a floor under the loss is at least 0, got {self.floor}")

    def extras(self, vlm: VLM, rows: Rows, inputs: Mapping[str, Tensor]) -> Extras:
        """Return nothing: the floor is a constant."""
        return {}

    def penalty(
        self, vlm: VLM, images: Tensor, texts: Tensor, extras: Extras, base: Base
    ) -> Tensor:
        """Return 2 max(0, b − L), which makes `|L − b| + b` of L."""
        return 2 * (self.floor - base(images)).clamp(min=0)
