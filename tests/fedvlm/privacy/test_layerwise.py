"""The clipped sum by layers where rounding could let a gradient past the clip."""

import pytest
import torch
from torch import nn

from fedvlm.privacy._layerwise import Tap, _squared_norms, clipped_sum

WIDTH, PLACES = 256, 4


@pytest.mark.parametrize("size", [1.0, 1e3, 1e4])
def test_places_that_cancel_are_clipped_all_the_same(size):
    """An example whose places nearly cancel: Gram matrices alone would read its norm as zero."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    long, short = torch.nn.functional.normalize(torch.randn(2, WIDTH, generator=generator), dim=1)
    x = torch.stack([size * long, short - size * long, 0 * short, 0 * short])[None]
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)
    assert 2 * PLACES * 2 * WIDTH < WIDTH * WIDTH  # Gram matrices are the cheaper way here

    norms = []

    def coefficients(found: torch.Tensor) -> torch.Tensor:
        norms.append(found)
        return (0.5 / found.clamp(min=1e-30)).clamp(max=1.0)

    sums = clipped_sum(
        lambda: (layer(x) * direction).sum(dim=(1, 2)),
        [Tap(layer, (layer.weight,))],
        coefficients,
    )
    assert norms[0].item() == pytest.approx(1.0, rel=1e-3)
    assert sums[layer.weight].norm().item() <= 0.5 * (1 + 1e-3)


def test_one_that_cancels_leaves_the_others_alone():
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(5, PLACES, WIDTH, generator=generator)
    right = torch.randn(5, PLACES, WIDTH, generator=generator)
    left[2, 1:], right[2] = left[2, :1], torch.stack([*right[2, :3], -right[2, :3].sum(0)])
    exact = (left.double().transpose(1, 2) @ right.double()).square().sum(dim=(1, 2))
    found = _squared_norms(left, right)
    assert found[2].item() < 1e-6 * found[0].item()
    torch.testing.assert_close(found[[0, 1, 3, 4]].double(), exact[[0, 1, 3, 4]])
