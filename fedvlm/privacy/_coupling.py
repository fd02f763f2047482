"""Whether a loss that calls itself row by row is: no row may feel what another one holds.

Layer by layer, row i of a layer is taken for unit i. Where a loss couples its rows, by a mean over
the batch or by negatives from it, even through numbers that carry no gradient, one example moves
the clipped gradients of all, and the sensitivity is not what the accountant was told.
"""

import weakref

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedvlm.errors import ConfigError
from fedvlm.models.generative import GenerativeVLM
from fedvlm.models.vlm import VLM
from fedvlm.privacy._layerwise import Tap, passes
from fedvlm.privacy.losses import Batch, PrivateLoss

# Single precision over batches of other sizes differs by about 10^-6.
_RELATIVE, _OF_LARGEST = 1e-3, 1e-5
_CHECKED: "weakref.WeakKeyDictionary[PrivateLoss, weakref.WeakSet[nn.Module]]" = (
    weakref.WeakKeyDictionary()
)


def _rows(
    loss: PrivateLoss, vlm: VLM | GenerativeVLM, batch: Batch, taps: list[Tap]
) -> list[Tensor]:
    """Return each row's loss, and its gradient at each layer's output: (B, …) each."""
    values, calls = passes(lambda: loss(vlm, batch), taps)  # pyright: ignore[reportArgumentType]
    return [values[:, None], *(call.g.reshape(len(values), -1) for call in calls)]


def _same(before: list[Tensor], after: list[Tensor]) -> bool:
    if len(before) != len(after):
        return False
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            return False
        sound = torch.isfinite(old).all(dim=1)
        if not torch.equal(sound, torch.isfinite(new).all(dim=1)):
            return False
        lengths = old[sound].norm(dim=1)
        allowed = _RELATIVE * lengths + _OF_LARGEST * lengths.max() if len(lengths) else lengths
        if bool(((new[sound] - old[sound]).norm(dim=1) > allowed).any()):
            return False
    return True


def check_rowwise(
    loss: PrivateLoss, vlm: VLM | GenerativeVLM, batch: Batch, taps: list[Tap]
) -> None:
    """Replace one row by another, and leave it out: the rest must stay as they are.

    Once for each loss and model; a batch of one row tells nothing, and the next one is looked at.

    Args:
        loss: A loss with `rowwise`.
        vlm: The model.
        batch: Inputs of units, one row each.
        taps: From `taps_of`; call this within `merged`.

    Raises:
        ConfigError: A row's loss or gradient depends on another row.
    """
    checked = _CHECKED.setdefault(loss, weakref.WeakSet())
    leaves = pytree.tree_leaves(batch)
    count = len(leaves[0])
    if vlm in checked or count < 2:
        return
    last = count - 1
    kept = torch.arange(last)
    before = [rows[:last] for rows in _rows(loss, vlm, batch, taps)]
    fewer = pytree.tree_map(lambda value: value[:last], dict(batch))
    altered = [_rows(loss, vlm, fewer, taps)]
    others = [i for i in range(last) if any(not torch.equal(v[i], v[last]) for v in leaves)]
    if others:
        index = torch.cat([kept, torch.tensor([others[0]])])
        replaced = pytree.tree_map(lambda value: value[index], dict(batch))
        altered.append([rows[:last] for rows in _rows(loss, vlm, replaced, taps)])
    if not all(_same(before, after) for after in altered):
        raise ConfigError(
            f"{type(loss).__name__} says that it is row by row, but a row's loss or gradient "
            "changed with another row: one example would move the gradients of all. Set "
            "rowwise = False where each unit may be differentiated by itself, or take a loss that "
            "doesn't compare examples with each other"
        )
    checked.add(vlm)
