"""Trainable parameters as one float32 vector: what crosses the network."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvlm.errors import IntegrityError


class FlatView:
    """The trainable parameters of a module as one float32 vector.

    Parameters are taken in sorted order of their names. The schema hash covers names and
    shapes, so two parties that hold different adapters find out before they add them up.

    Args:
        module: Its parameters with `requires_grad` are viewed; at least one.

    Example:
        >>> view = FlatView(torch.nn.Linear(3, 2))
        >>> view.size
        8
        >>> view.write(np.zeros(8, dtype=np.float32))
        >>> float(np.abs(view.read()).sum())
        0.0
    """

    def __init__(self, module: nn.Module) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise IntegrityError("the module has no trainable parameter to view")
        self._named = sorted(named, key=lambda item: item[0])
        self.size = sum(p.numel() for _, p in self._named)
        lines = [f"{name} {tuple(p.shape)}" for name, p in self._named]
        self.schema = hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The viewed parameters, in the vector's order."""
        return [parameter for _, parameter in self._named]

    @property
    def layout(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of each parameter, in the vector's order."""
        return tuple((name, tuple(p.shape)) for name, p in self._named)

    def read(self) -> NDArray[np.float32]:
        """Return a copy of the parameters: shape (P,), float32."""
        with torch.no_grad():
            flat = torch.cat([p.detach().reshape(-1).float() for p in self.parameters])
        return flat.cpu().numpy().copy()

    def write(self, vector: NDArray[np.float32], schema: str | None = None) -> None:
        """Set the parameters from a vector.

        Args:
            vector: Shape (P,), float32, finite.
            schema: The sender's schema hash; None where the vector was made here.

        Raises:
            IntegrityError: Another schema, another length or dtype, or a value that isn't finite;
                the parameters are then unchanged.
        """
        if schema is not None and schema != self.schema:
            raise IntegrityError(
                f"adapter of another schema: got {schema[:12]}…, expected {self.schema[:12]}…"
            )
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise IntegrityError(
                f"expected {self.size} float32 values, got {vector.dtype} {vector.shape}"
            )
        if not np.isfinite(vector).all():
            bad = int((~np.isfinite(vector)).sum())
            raise IntegrityError(f"the vector has {bad} values that are not finite")
        start = 0
        with torch.no_grad():
            for parameter in self.parameters:
                piece = vector[start : start + parameter.numel()]
                parameter.copy_(torch.tensor(piece).view_as(parameter))
                start += parameter.numel()
