"""The client: it alone holds the secret key."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure.errors import ParameterError
from secure.he._arguments import as_floats
from secure.he._bounds import summand_error
from secure.he._exact import encode_periodic
from secure.he._pack import pack, packed_bytes, unpack
from secure.he._rotations import slots_of
from secure.he._seal import engine, galois_element, native_errors
from secure.he.ciphertext import Encrypted, Piece
from secure.he.errors import LayoutError, RangeError, ReleaseError, WireError
from secure.he.keys import EvaluationKeys
from secure.he.params import HEParams
from secure.he.plans import ChainPlan, PeriodicPlan, Plan, SumPlan
from secure.he.release import ReleasePolicy
from secure.he.wire import (
    FINGERPRINT_BYTES,
    Envelope,
    Kind,
    require_same_key,
    require_same_parameters,
)
from secure.random import SecureRandom

# Root mean square of coefficients from which on rounding to the nearest is as good as random.
_LARGE_COEFFICIENT = 2.0**8


class HEClient:
    """Owner of a secret key: encrypts, decrypts, and makes the keys that a server computes with.

    Args:
        params: Encryption parameters.

    Guarantees:
        What `encrypt` and `evaluation_keys` return hides the values from everyone without the
        secret key, at 128 bits (IND-CPA). SEAL draws key and encryption randomness from the
        operating system. `decrypt` is for the owner alone: a decrypted value that goes to
        anyone else goes through `release`.

    Example:
        >>> from secure.he import EncryptedLinear
        >>> params = HEParams.select(depth=0, max_abs=1.0, abs_error=3e-4)
        >>> layer = EncryptedLinear(np.array([[0.5, 0.5], [1.0, -1.0]]), params=params)
        >>> client = HEClient(params)
        >>> keys = client.evaluation_keys(layer.plan)
        >>> result = layer(client.encrypt([0.6, 0.2], layer.plan), keys)
        >>> client.decrypt(result).round(2).tolist()
        [[0.4, 0.4]]
    """

    def __init__(self, params: HEParams) -> None:
        self._setup(params, None, SecureRandom().token(FINGERPRINT_BYTES))

    def _setup(self, params: HEParams, secret: Any, fingerprint: bytes) -> None:
        seal = engine(params)
        api = seal.api
        self._seal = seal
        self._random = SecureRandom()
        self.params = params
        self.fingerprint = fingerprint
        self._keygen = (
            api.KeyGenerator(seal.context)
            if secret is None
            else api.KeyGenerator(seal.context, secret)
        )
        self._secret = self._keygen.secret_key()
        self._encryptor = api.Encryptor(seal.context, self._secret)
        self._decryptor = api.Decryptor(seal.context, self._secret)
        self._released = 0

    @property
    def released(self) -> int:
        """Results that this key has released."""
        return self._released

    def encrypt(self, values: ArrayLike, plan: Plan) -> Encrypted:
        """Encrypt values for a layer.

        Args:
            values: Shape `(in_features,)`, or `(batch, in_features)` where the plan has a batch.
                Each row has Euclidean norm at most `params.max_abs`.
            plan: The layer's `plan`.

        Returns:
            Seeded ciphertexts: half the size of plain ones.

        Raises:
            RangeError: A value is not finite, or a row has a larger norm.
            ParameterError: The shape is not the plan's.
            ParametersMismatchError: The plan was made for other parameters.
        """
        require_same_parameters(plan.params.identity, self.params.identity, "the plan")
        array = as_floats(values, "values")
        if array.ndim not in (1, 2):
            raise ParameterError(f"values have one or two axes, got {array.ndim}")
        with np.errstate(over="ignore", invalid="ignore"):
            largest = float(np.sqrt(np.sum(np.square(array), axis=-1)).max(initial=0.0))
        if not largest <= self.params.max_abs * (1 + 1e-9):
            raise RangeError(
                f"a row has norm above max_abs={self.params.max_abs:g} or is not finite: scale "
                "it down, or choose parameters for a larger max_abs"
            )
        scale = 2.0**self.params.scale_bits
        pieces = []
        for slots in plan.encode(array):
            plain = self._encode(plan, slots, scale)
            sealed = self._encryptor.encrypt_symmetric(plain)
            pieces.append(Piece(*self._seal.seeded_residues(sealed, 0)))
        return Encrypted(plan, self.fingerprint, False, 0, scale, tuple(pieces))

    def _encode(self, plan: Plan, slots: NDArray[np.complex128], scale: float) -> Any:
        if isinstance(plan, ChainPlan | PeriodicPlan):
            return encode_periodic(self.params, slots[: plan.period], scale, 0, self._random)
        # Small coefficients are rounded at random: to the nearest, their errors would agree, and
        # sparse values vanish. Of large ones the last bits are random as they are.
        degree = self.params.poly_modulus_degree
        size = float(np.linalg.norm(slots)) * scale * math.sqrt(2) / degree
        if size < _LARGE_COEFFICIENT:
            slots = slots + slots_of(self._random.uniform(degree) - 0.5) / scale
        return self._seal.encode(slots, scale)

    def evaluation_keys(self, plan: Plan, public: bool = False) -> EvaluationKeys:
        """Make the keys that a server needs for a layer: only its own rotations.

        Args:
            plan: The layer's `plan`.
            public: Also make a public key, which a server needs to re-randomise its results.

        Returns:
            Keys without anything secret.
        """
        require_same_parameters(plan.params.identity, self.params.identity, "the plan")
        seal, degree = self._seal, self.params.poly_modulus_degree
        digits = len(self.params.data_bits)
        rotation, relin, public_key = [], [], None
        if plan.steps:
            elements = [galois_element(step, degree) for step in plan.steps]
            positions = sorted((element - 1) // 2 for element in elements)
            made = self._keygen.create_galois_keys(elements)
            parts = seal.split_switch_keys(made, positions, degree)
            ranks = {position: rank for rank, position in enumerate(positions)}
            for element in elements:
                first = ranks[(element - 1) // 2] * digits
                rotation += parts[first : first + digits]
        if plan.relinearises:
            relin = seal.split_switch_keys(self._keygen.create_relin_keys(), [0], 1)
        if public:
            key = seal.api.PublicKey()
            self._keygen.create_public_key(key)
            public_key = seal.split_public_key(key)
        return EvaluationKeys(
            self.params, self.fingerprint, plan.steps, tuple(rotation), tuple(relin), public_key
        )

    @native_errors()
    def decrypt(self, encrypted: Encrypted) -> NDArray[np.float64]:
        """Decrypt a result, for the owner of the key alone.

        Returns:
            Shape `(batch, out_features)`, float64.

        Raises:
            ParametersMismatchError: Made under other parameters.
            KeyMismatchError: Made under another key.
            LayoutError: It is an input that no layer was applied to.
        """
        require_same_parameters(encrypted.params.identity, self.params.identity, "the ciphertext")
        require_same_key(encrypted.fingerprint, self.fingerprint, "the ciphertext")
        if not encrypted.is_result:
            raise LayoutError("this is an input: apply the layer before decrypting")
        rows = []
        for ciphertext in encrypted.load():
            plain = self._seal.api.Plaintext()
            self._decryptor.decrypt(ciphertext, plain)
            rows.append(self._seal.encoder.decode_complex(plain))
        return encrypted.plan.decode(np.array(rows, dtype=np.complex128))

    def release(self, encrypted: Encrypted, policy: ReleasePolicy) -> NDArray[np.float64]:
        """Decrypt a result for someone else: noised, rounded and counted.

        Raises:
            ReleaseError: The key has released `policy.max_queries` results, or the policy was
                made for fewer entries or a smaller error than this result's.
        """
        policy.require(encrypted.plan.entries, _least_error(encrypted))
        if self._released >= policy.max_queries:
            raise ReleaseError(
                f"this key has released {self._released} results, the policy's limit: "
                "make a new key"
            )
        values = self.decrypt(encrypted)
        self._released += 1
        return policy.apply(values, self._random)

    def export_secret(self) -> bytes:
        """Serialize the secret key. WHOEVER HOLDS IT READS EVERYTHING under this key.

        For clients that aggregate under a common key: see `secure.he.HEAggregator`. The count
        of released results is not part of it.
        """
        rows = self._seal.split_secret_key(self._secret)
        bits = self.params.coeff_bits
        body = b"".join(pack(row, width) for row, width in zip(rows, bits, strict=True))
        params = self.params.to_bytes()
        payload = bytes([len(params)]) + params + body
        return Envelope(Kind.SECRET_KEY, self.params.identity, self.fingerprint, payload).to_bytes()

    @classmethod
    def from_secret(cls, data: bytes) -> "HEClient":
        """Read what `export_secret` wrote.

        Raises:
            WireError: Damaged, truncated or of another format.
        """
        envelope = Envelope.from_bytes(data, Kind.SECRET_KEY)
        body = bytes(envelope.payload)
        size = body[0] if body else 0
        params = HEParams.from_bytes(body[1 : 1 + size])
        require_same_parameters(envelope.parameters, params.identity, "the secret key")
        seal, degree = engine(params), params.poly_modulus_degree
        rows, at = [], 1 + size
        for width, prime in zip(params.coeff_bits, seal.key_primes, strict=True):
            end = at + packed_bytes(degree, width)
            rows.append(unpack(body[at:end], degree, width, prime))
            at = end
        if at != len(body):
            raise WireError("the secret key has bytes to spare")
        client = cls.__new__(cls)
        client._setup(params, seal.join_secret_key(np.stack(rows)), envelope.fingerprint)
        return client

    def __reduce__(self):
        raise TypeError("HEClient can't be pickled: it holds a secret key")

    def __repr__(self) -> str:
        return f"HEClient(N={self.params.poly_modulus_degree}, key={self.fingerprint.hex()[:8]})"


def _least_error(encrypted: Encrypted) -> float:
    """Return the error that an entry of a result may have at least: of unit rows, of one vector."""
    plan = encrypted.plan
    if isinstance(plan, SumPlan):
        return summand_error(plan.params.poly_modulus_degree) * 2.0**-plan.params.scale_bits
    depth = (2 if plan.square else 1) if isinstance(plan, ChainPlan) else 0
    return plan.params.predicted_error(depth)
