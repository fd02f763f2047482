"""The public-only control: prototypes of captions from public pairs, by their likeness in text.

A Gaussian process from text to prototype (Rasmussen and Williams 2006, equation 2.23), whose
observations are the means of public captions. It touches nothing private: what a private head
must beat, and what it falls back to.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import IntegrityError
from fedvlm.heads.whitening import unit_rows

_SAME = 1 - 1e-6


@dataclass(frozen=True)
class Kernel:
    """How alike the prototypes of two captions are expected to be.

    Attributes:
        sharpness: β of exp(β(cos − 1)) over centred text embeddings.
        shared: Variance that captions share by their likeness, of a unit vector's 1.
        own: Variance of a caption's own.
        within: Variance of one image around its caption's prototype.
    """

    sharpness: float = 4.0
    shared: float = 0.5
    own: float = 0.2
    within: float = 0.3

    def between(self, one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return covariances of shape (N, M); a caption with itself has its own variance too."""
        cosines = one @ other.T
        return self.shared * np.exp(self.sharpness * (cosines - 1)) + self.own * (cosines > _SAME)


@dataclass(frozen=True)
class Control:
    """What public pairs say of any caption.

    Attributes:
        kernel: Likeness of captions.
        centre: Shape (D,): mean of the public captions' embeddings.
        anchors: Shape (A, D): public captions, centred, of norm 1.
        weights: Shape (A, d): (K + noise)⁻¹ times the public prototypes.
        solved: Shape (A, A): (K + noise)⁻¹, for variances.
    """

    kernel: Kernel
    centre: NDArray[np.float64]
    anchors: NDArray[np.float64]
    weights: NDArray[np.float64]
    solved: NDArray[np.float64]

    def prototypes(self, texts: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return expected prototypes of captions.

        Args:
            texts: Shape (N, D): their embeddings.

        Returns:
            Shape (N, d); short where public captions say little.
        """
        return self._against(texts) @ self.weights

    def variances(self, texts: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return what is left unsure of a prototype, summed over its coordinates: shape (N,)."""
        against = self._against(texts)
        known = np.einsum("na,ab,nb->n", against, self.solved, against, optimize=True)
        whole = self.kernel.shared + self.kernel.own
        return np.clip(whole - known, 0.05 * whole, whole)

    def _against(self, texts: NDArray[np.floating]) -> NDArray[np.float64]:
        return self.kernel.between(unit_rows(texts - self.centre), self.anchors)


def fit_control(
    features: NDArray[np.floating],
    captions: NDArray[np.int64],
    texts: NDArray[np.floating],
    kernel: Kernel | None = None,
) -> Control:
    """Fit the control to public pairs.

    Args:
        features: Shape (N, d): unit features of public pairs.
        captions: Shape (N,): row of `texts` of each.
        texts: Shape (C, D): embeddings of captions.
        kernel: Likeness of captions.

    Raises:
        IntegrityError: There are no public pairs, or shapes don't fit.
    """
    kernel = kernel or Kernel()
    if not len(features) or len(features) != len(captions):
        raise IntegrityError(f"{len(features)} features and {len(captions)} captions don't fit")
    distinct, numbers, counts = np.unique(captions, return_inverse=True, return_counts=True)
    means = np.zeros((len(distinct), features.shape[1]))
    np.add.at(means, numbers, features)
    means /= counts[:, None]
    chosen = np.asarray(texts, dtype=np.float64)[distinct]
    centre = chosen.mean(axis=0)
    anchors = unit_rows(chosen - centre)
    covariance = kernel.between(anchors, anchors) + np.diag(kernel.within / counts)
    solved = np.linalg.inv(covariance)
    weights: NDArray[np.float64] = solved @ means
    return Control(kernel, centre, anchors, weights, solved.astype(np.float64))
