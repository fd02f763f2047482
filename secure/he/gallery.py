"""Search in a gallery that cannot see the query."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure.errors import ParameterError
from secure.he._arguments import as_matrix, whole
from secure.he.ciphertext import Encrypted
from secure.he.keys import EvaluationKeys
from secure.he.linear import EncryptedLinear
from secure.he.params import HEParams
from secure.he.plans import RotationPlan


class EncryptedGallery:
    """Scores of one encrypted query against every item.

    The items are the rows of one wide layer: baby steps are shared by all chunks of N items,
    each chunk adds its products and giant steps, and two items share a complex slot.

    Args:
        embeddings: Shape `(items, dimension)`; unit rows give cosine similarities.
        params: Encryption parameters with a special prime.
        progress: Show a bar while encoding, where stderr is a terminal.

    Attributes:
        error: Bound on the error of a score, as for `EncryptedLinear`.

    Guarantees:
        The server learns neither query nor scores nor which items come out on top (IND-CPA).
        THE CLIENT GETS THE SCORE OF EVERY ITEM, and with `dimension` queries the gallery's
        embeddings: they are not hidden from it.

    Example:
        >>> params = HEParams.select(depth=0, max_abs=1.0, abs_error=3e-4)
        >>> gallery = EncryptedGallery(np.eye(3), params)
        >>> from secure.he import HEClient
        >>> client = HEClient(params)
        >>> keys = client.evaluation_keys(gallery.plan)
        >>> scores = gallery.query(client.encrypt([0.0, 1.0, 0.0], gallery.plan), keys)
        >>> top_k(client.decrypt(scores)[0], 1).tolist()
        [1]
    """

    def __init__(self, embeddings: ArrayLike, params: HEParams, *, progress: bool = True) -> None:
        matrix = as_matrix(embeddings, 2, "embeddings")
        self.items, self.dimension = matrix.shape
        plan = RotationPlan(params, self.dimension, self.items)
        with _bar(progress, f"encoding {self.items} items") as report:
            self._layer = EncryptedLinear(matrix, params=params, plan=plan, progress=report)
        self.params = params
        self.plan = plan
        self.error = self._layer.error

    def query(self, encrypted: Encrypted, keys: EvaluationKeys) -> Encrypted:
        """Return the encrypted scores, `(1, items)` once decrypted.

        Raises:
            As `EncryptedLinear` does.
        """
        return self._layer(encrypted, keys)

    __call__ = query


def top_k(scores: ArrayLike, k: int) -> NDArray[np.int64]:
    """Return the indices of the k highest scores, best first: the client's part.

    Args:
        scores: Shape `(items,)`, decrypted.
        k: At least 1; more than there are items gives all of them.
    """
    array = as_matrix(scores, 1, "scores")
    if whole(k, "k") < 1:
        raise ParameterError(f"k must be at least 1, got {k}")
    return np.argsort(-array, kind="stable")[:k]


@contextlib.contextmanager
def _bar(show: bool, label: str) -> Iterator[Callable[[float], None]]:
    if not (show and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda done: bar.update(task, completed=done)
