"""A linear layer on encrypted vectors, of any shape."""

from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike

from secure.errors import ParameterError
from secure.he._arguments import as_matrix, whole
from secure.he._residues import ResidueLayer
from secure.he._rotations import RotationLayer
from secure.he._seal import engine, native_errors
from secure.he.ciphertext import Encrypted, Piece
from secure.he.errors import MissingKeyError
from secure.he.keys import EvaluationKeys
from secure.he.params import HEParams
from secure.he.planner import Choice, choose, cost
from secure.he.plans import ResiduePlan, RotationPlan


class EncryptedLinear:
    """`y = W x + b` on an encrypted `x`: the server sees neither `x` nor `y`.

    Args:
        weight: Shape `(out_features, in_features)`, any sizes.
        bias: Shape `(out_features,)`, or None.
        params: Encryption parameters.
        batch: Vectors in one call.
        plan: A layout to use instead of the planner's choice.
        progress: Called with the fraction of the weights that is encoded.

    Attributes:
        error: Bound on the error of any entry of a result, for inputs of norm up to `max_abs` that
            don't depend on how the weights were rounded. An entry exceeds it with probability
            3e-14; a key, by key switching's bias, with 1e-9.

    Guarantees:
        The input stays hidden from the server (IND-CPA), which is trusted to compute what it
        should: a ciphertext can be altered. W IS NOT HIDDEN from the client: `in_features`
        queries recover it by linear algebra, fewer in the rotation layout, whose unread slots
        hold partial sums, and one in the residue layout, whose results are an exact product of
        public residues. A server that must hide W
        uses `GuardedLinear`, which re-randomises, floods and counts.

    Raises:
        RangeError: A result could leave the plaintext range of the parameters.
        ParameterError: Weights or shapes are not usable.

    Example:
        >>> import torch
        >>> params = HEParams.select(depth=0, max_abs=1.0, abs_error=3e-4)
        >>> layer = EncryptedLinear.from_torch(torch.nn.Linear(20, 30), params)
        >>> layer.in_features, layer.out_features
        (20, 30)
    """

    def __init__(
        self,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        params: HEParams,
        batch: int = 1,
        plan: RotationPlan | ResiduePlan | None = None,
        progress: Callable[[float], None] = lambda done: None,
    ) -> None:
        matrix = as_matrix(weight, 2, "weight")
        shift = None if bias is None else as_matrix(bias, 1, "bias")
        self.out_features, self.in_features = matrix.shape
        if shift is not None and shift.shape != (self.out_features,):
            raise ParameterError(f"bias has {len(shift)} entries for {self.out_features} outputs")
        if plan is None:
            self.choice = choose(params, self.in_features, self.out_features, whole(batch, "batch"))
        else:
            if (plan.in_features, plan.out_features) != (self.in_features, self.out_features):
                raise ParameterError(f"{plan} does not fit weights of shape {matrix.shape}")
            self.choice = Choice(plan, cost(plan), "given by the caller")
        self.params = params
        self.plan = self.choice.plan
        if isinstance(self.plan, RotationPlan):
            self._layer = RotationLayer(self.plan, matrix, shift, progress)
        else:
            self._layer = ResidueLayer(self.plan, matrix, shift)
        self.error = self._layer.error

    @classmethod
    def from_torch(cls, linear: Any, params: HEParams, batch: int = 1) -> "EncryptedLinear":
        """Take the weights of a `torch.nn.Linear`.

        Args:
            linear: The layer; anything with `weight` and `bias` will do.
            params: Encryption parameters.
            batch: Vectors in one call.
        """
        return cls(linear.weight, getattr(linear, "bias", None), params=params, batch=batch)

    def explain(self) -> str:
        """Say in one line which layout was chosen, and why."""
        return f"{self.in_features} to {self.out_features}: {self.choice.reason}"

    @native_errors()
    def __call__(self, encrypted: Encrypted, keys: EvaluationKeys | None = None) -> Encrypted:
        """Apply the layer.

        Args:
            encrypted: An input, packed by this layer's `plan`.
            keys: The client's evaluation keys; the residue layout needs none.

        Returns:
            The encrypted result: `(batch, out_features)` once decrypted.

        Raises:
            MissingKeyError: Keys are needed, and they or one of their rotations are missing.
            KeyMismatchError: The keys belong to another secret key than the input.
            ParametersMismatchError: Made under other parameters.
            LayoutError: Packed for another layer, or a result already.
        """
        encrypted.require_input_of(self.plan, None if keys is None else keys.fingerprint)
        if isinstance(self._layer, ResidueLayer):
            scale = encrypted.scale * self._layer.weight_scale
            pieces = self._layer.apply(encrypted.pieces)
            return Encrypted(self.plan, encrypted.fingerprint, True, 0, scale, pieces)
        if keys is None:
            raise MissingKeyError("this layer rotates: pass the client's evaluation keys")
        keys.require(self.plan)
        return as_result(encrypted, self._layer.apply(encrypted.load(), keys))


def as_result(encrypted: Encrypted, ciphertexts: list[Any]) -> Encrypted:
    """Wrap SEAL's ciphertexts as the result of `encrypted`'s plan; all share level and scale."""
    seal = engine(encrypted.params)
    level = seal.level_of(ciphertexts[0])
    pieces = tuple(Piece(seal.residues(one, level)) for one in ciphertexts)
    return Encrypted(
        encrypted.plan, encrypted.fingerprint, True, level, ciphertexts[0].scale, pieces
    )
