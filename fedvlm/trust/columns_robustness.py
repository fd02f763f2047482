"""Robustness as it is read off one model: corruptions, unknowns, confidence, attacks, geometry."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.data.variants import load_flags
from fedvlm.seeds import ExperimentSeed
from fedvlm.trust.adversarial import least_radius, masking
from fedvlm.trust.calibration import confidences, ece_estimate, overconfidence
from fedvlm.trust.context import Context, Rows, first_among
from fedvlm.trust.contrasts import cluster_means
from fedvlm.trust.corruption import CORRUPTIONS, SEVERITIES, corrupt, noise_images
from fedvlm.trust.estimate import Estimate, UnresolvedError
from fedvlm.trust.geometry import modality_gap, shifted
from fedvlm.trust.ood import auroc, detection, energy, fpr_at_tpr, max_logit, mcm
from fedvlm.trust.readings import Reading, reading_of, reading_of_gap

Measure = Callable[[], Reading]
_MASKING_AT = 0.5 / 255


class Test:
    """The test part under one model: embedded once, read several times."""

    __test__ = False  # no test of pytest's

    def __init__(self, context: Context) -> None:
        self.context = context
        self.rows = context.splits.test
        self.texts = context.subject.texts(context.captions)
        self.right = context.right(self.rows, context.captions)
        self.images = context.subject.images(context.data, self.rows)
        self.concepts = context.data.concepts[self.rows]
        self.first = first_among(self.images, self.texts, self.right)
        self.cosines = self.images @ self.texts.T

    def sure(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return confidence and correctness of each image."""
        return confidences(self.cosines, self.right, self.context.subject.scale)


class Robustness:
    """Measures that share the test part's embeddings."""

    def __init__(self, context: Context, test: Callable[[], Test]) -> None:
        self.context = context
        self.test = test

    def corrupted(self, severity: int) -> Reading:
        """Read first places of corrupted test images, over all kinds."""
        context = self.context
        rows = context.sample(context.splits.test, context.sizes.corrupted, "corrupted")
        texts = self.test().texts
        right = context.right(rows, context.captions)
        found = []
        for kind in CORRUPTIONS:
            held = context.subject.altered(
                f"{kind} {severity} {context.seed.value}",
                context.data,
                rows,
                lambda images, kind=kind: corrupt(images, kind, severity, context.seed),
            )
            found.append(first_among(context.subject.embed(held), texts, right))
        return reading_of(np.mean(found, axis=0), context.data.concepts[rows])

    def unseen_designer(self) -> Reading:
        """Read first places by a designer whom nobody trained on, less the test's, by concept."""
        context = self.context
        rows = context.splits.ood
        if not len(rows):
            raise UnresolvedError("the data names no domain that is kept out of training")
        captions = sorted({context.data.captions[row] for row in rows})
        own = self._among(rows, captions)
        shared = np.isin(self.test().concepts, context.data.concepts[rows])
        test_rows = context.splits.test[shared]
        here = self._among(test_rows, captions)
        return reading_of_gap(
            (own, context.data.concepts[rows]),
            (here, context.data.concepts[test_rows]),
            context.rng("unseen"),
        )

    def _among(self, rows: Rows, captions: list[str]) -> NDArray[np.float64]:
        context = self.context
        return first_among(
            context.subject.images(context.data, rows),
            context.subject.texts(captions),
            context.right(rows, captions),
        )

    def _unknown(self, which: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return embeddings and clusters of images that no test caption is right for."""
        context = self.context
        if which == "noise":
            count, seed = context.sizes.noise, ExperimentSeed(context.seed.value)
            rows = np.arange(count)
            held = context.subject.altered(
                f"noise {seed.value}",
                None,
                rows,
                lambda blank: noise_images(len(blank), blank.shape[1], seed),
            )
            return context.subject.embed(held), rows
        if which == "flags":
            if not context.of_emoji:
                raise UnresolvedError("flags belong to the embedded data")
            data = load_flags()
            chosen = context.sample(np.arange(len(data)), context.sizes.altered, "flags")
            return context.subject.images(data, chosen), data.concepts[chosen]
        rows = context.splits.withheld
        if not len(rows):
            raise UnresolvedError("no concept is withheld from every client")
        chosen = context.sample(rows, 2 * context.sizes.altered, "withheld")
        return context.subject.images(context.data, chosen), context.data.concepts[chosen]

    def detected(self, which: str, score: str, metric=auroc) -> Reading:
        """Read how well a score tells test images from unknown ones."""
        test, temperature = self.test(), 1 / self.context.subject.scale
        unknown, clusters = self._unknown(which)
        scores: dict[str, Callable[[NDArray], NDArray]] = {
            "mcm": lambda c: mcm(c, temperature),
            "mcm at 1": lambda c: mcm(c, 1.0),
            "max logit": max_logit,
            "energy": lambda c: energy(c, temperature),
        }
        found = detection(
            (scores[score](test.cosines), test.concepts),
            (scores[score](unknown @ test.texts.T), clusters),
            self.context.rng("detected", which, score),
            metric,
        )
        return Reading(found)

    def overconfidence(self) -> Reading:
        """Read confidence − accuracy over the test's captions, signed."""
        test = self.test()
        sure, right = test.sure()
        by_concept = cluster_means(sure - right, test.concepts)
        return Reading(overconfidence(sure, right, test.concepts), by_concept)

    def ece(self) -> Reading:
        """Read the debiased ECE over the test's captions."""
        test = self.test()
        return Reading(ece_estimate(*test.sure(), test.concepts, self.context.rng("ece")))

    def modality_gap(self) -> Reading:
        """Read the distance of the means of images and captions."""
        test = self.test()
        texts = test.texts[test.right]
        return Reading(modality_gap(test.images, texts, test.concepts, self.context.rng("gap")))

    def closed_gap(self) -> Reading:
        """Read what closing the modality gap does to first places."""
        test = self.test()
        moved = first_among(shifted(test.images, test.texts, 1.0), test.texts, test.right)
        return reading_of(moved - test.first, test.concepts)

    def attacked(self) -> tuple[torch.Tensor, torch.Tensor, Rows]:
        """Return pixels, labels and rows of images to attack: of those that the model gets right.

        What is wrong untouched needs no attack. Images are drawn in one order for every model, so
        that two models share those that both get right.

        Raises:
            UnresolvedError: The model gets no image of the test right.
        """
        context, test = self.context, self.test()
        right = test.sure()[1]
        order = context.rng("sample", "attacked").permutation(len(test.rows))
        chosen = np.sort(order[right[order]][: context.sizes.attacked])
        if not len(chosen):
            raise UnresolvedError("the model gets no image of the test right: none can be broken")
        rows = test.rows[chosen]
        pixels = context.data.arrays(rows, context.subject.size)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        return images, torch.from_numpy(test.right[chosen]), rows

    def least_radius(self) -> Reading:
        """Read the median smallest L∞ radius that PGD needs, in 1/255, of images it gets right."""
        context = self.context
        images, labels, _ = self.attacked()
        model = context.subject.classifier(self.test().texts)
        generator = context.seed.torch("trust", "pgd")
        radii = 255 * least_radius(model, images, labels, generator, steps=5).radii
        standing = radii[radii > 0]
        if not len(standing):
            raise UnresolvedError("the model gets none of the attacked images right")
        # No resample of a median of radii from a grid is smooth: order statistics instead.
        low, high = _median_interval(standing)
        value = float(np.median(standing))
        if not np.isfinite(value):
            raise UnresolvedError("half of the images were broken at none of the radii tried")
        return Reading(Estimate(value, low, high, len(standing), len(standing)))

    def masking(self, surrogate: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Reading]:
        """Read attacks without the model's gradients, each less PGD: above 0 they are masked.

        Args:
            surrogate: Another model's classifier over the same captions.

        Returns:
            "square" and "transfer", of the same images beside the same PGD.
        """
        context = self.context
        images, labels, _ = self.attacked()
        model = context.subject.classifier(self.test().texts)
        generator = context.seed.torch("trust", "masking")
        found = masking(model, surrogate, images, labels, _MASKING_AT, generator, queries=60)
        white = found.white.astype(np.float64)
        each = {"square": found.square - white, "transfer": found.transfer - white}
        return {name: reading_of(one, np.arange(len(one))) for name, one in each.items()}


def _median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the order statistics that hold the median with 95 % (binomial)."""
    from scipy.stats import binom

    ordered = np.sort(values)
    reach = int(binom.ppf(0.025, len(ordered), 0.5))
    low = ordered[max(0, reach - 1)]
    high = ordered[min(len(ordered) - 1, len(ordered) - reach)]
    return float(low), float(high)


def robustness_columns(
    context: Context, test: Callable[[], Test]
) -> dict[str, tuple[str, Measure]]:
    """Return what is measured of robustness: name → title and measure."""
    of = Robustness(context, test)
    out: dict[str, tuple[str, Measure]] = {
        "overconfidence": ("confidence − accuracy", of.overconfidence),
        "ece": ("ECE, equal mass, debiased", of.ece),
        "unseen_designer": ("unseen domain − seen", of.unseen_designer),
    }
    for severity in SEVERITIES:
        out[f"corrupted_{severity}"] = (
            f"corrupted, severity {severity}, one of 100",
            lambda severity=severity: of.corrupted(severity),
        )
    for which in ("withheld", "flags", "noise"):
        for score in ("mcm", "mcm at 1", "max logit", "energy"):
            name = f"auroc_{which}_{score.replace(' ', '_')}"
            title = f"AUROC {which}, {score}"
            out[name] = (title, lambda w=which, s=score: of.detected(w, s))
        out[f"fpr95_{which}_mcm"] = (
            f"FPR95 {which}, mcm",
            lambda w=which: of.detected(w, "mcm", fpr_at_tpr),
        )
    return out | {
        "least_radius": ("median least L∞ of PGD, /255", of.least_radius),
        "modality_gap": ("modality gap", of.modality_gap),
        "closed_gap": ("gain of closing the gap", of.closed_gap),
    }
