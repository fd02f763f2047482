"""LiRA, RMIA and attack R on a released adapter, calibrated by shadows on frozen features."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from fedvlm.leakage.probe import Candidates, Probe
from fedvlm.leakage.scores import attack_r, lira_offline, lira_online, margin, rmia_offline
from fedvlm.leakage.shadows import ShadowSettings, draw_masks, similarities, train_shadows
from fedvlm.leakage.vantage import View

Array = NDArray[np.float64]
SHADOWS = 64
SETTINGS = ShadowSettings(rank=8, epochs=20, batch_size=50, learning_rate=2.0)
_CHUNK = 16  # shadows whose similarities with the negatives are held at a time


def shadow_margins(
    view: View, probe: Probe, indices: NDArray[np.int64]
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Train shadows on the candidates and return φ under each.

    The shadows are low-rank residuals on the untouched backbone's embeddings, a cheaper family
    than the audited adapter: they tell how hard a pair is, and how much training on it can move
    it. A mismatch costs the attack power, and never makes it see a leak that isn't there.

    Args:
        view: For the public adapter before training.
        probe: Measures the backbone.
        indices: Shape (N,), the candidates.

    Returns:
        φ of candidates (M, N), φ of the population (M, Z), and the masks (M, N).
    """
    rng = probe.task.seed.numpy("audit", "shadows")
    images, texts = (part.clone() for part in probe.embeddings(view.initial, indices))
    public = [part.clone() for part in probe.embeddings(view.initial, probe.negatives)]
    others = [part.clone() for part in probe.embeddings(view.initial, probe.population[:500])]
    masks = draw_masks(SHADOWS, len(indices), rng)
    shadows = train_shadows(images, texts, masks, SETTINGS, rng)
    found: list[list[Array]] = [[], []]
    for start in range(0, SHADOWS, _CHUNK):
        some = type(shadows)(*(factor[start : start + _CHUNK] for factor in shadows.tensors))
        for out, (x, t) in zip(found, ((images, texts), tuple(others)), strict=True):
            own = torch.diagonal(similarities(some, x, t), dim1=1, dim2=2).double().numpy()
            rows = similarities(some, x, public[1]).double().numpy()
            columns = similarities(some, public[0], t).mT.double().numpy()
            out += [
                margin(o, r, c, probe.scale) for o, r, c in zip(own, rows, columns, strict=True)
            ]
    return np.stack(found[0]), np.stack(found[1]), masks


def shadow_scores(view: View, probe: Probe, who: Candidates) -> dict[str, Array]:
    """Return LiRA (online and offline), RMIA and attack R on a released adapter.

    Each φ of the audited adapter is read as its rank would be among the shadows': centred and
    scaled by the population's mean and deviation, since the families differ.

    Raises:
        WrongVantageError: The view holds no released adapter.
    """
    released = view.need("released", "lira")
    shadows, population, masks = shadow_margins(view, probe, who.indices)
    public = probe.cosines(released, probe.population[: population.shape[1]]).margin
    observed = probe.cosines(released, who.indices).margin
    centre, spread = public.mean(), max(public.std(), 1e-9)
    base = population.mean(axis=1, keepdims=True)
    width = np.maximum(population.std(axis=1, keepdims=True), 1e-9)
    observed, public = (observed - centre) / spread, (public - centre) / spread
    shadows, population = (shadows - base) / width, (population - base) / width
    out = np.where(masks, 0.0, expit(shadows)).sum(axis=0) / (~masks).sum(axis=0)
    return {
        "attack-r": attack_r(-observed, -shadows, ~masks),
        "lira-online": lira_online(observed, shadows, masks),
        "lira-offline": lira_offline(observed, shadows, masks),
        "rmia-shadows": rmia_offline(
            expit(observed), out, expit(public), expit(population).mean(axis=0)
        ),
    }
