"""Gradient inversion: from an update back to what it was computed on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedvlm.errors import ConfigError
from fedvlm.leakage.vantage import Vantage, WrongVantageError

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What came out of an inversion.

    Attributes:
        inputs: The reconstructed inputs.
        distance: 1 − cosine between the observed and the reconstructed gradient, in [0, 2].
    """

    inputs: Tensor
    distance: float


def invert_linear(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """Return the input of a linear layer with bias, exactly, from its gradient.

    For one example ∂W = g xᵀ and ∂b = g, so a row of ∂W over its entry of ∂b is x (Phong et al.
    2018). Of a batch, or of a sum over clients, it is a weighted mean of the inputs.

    Args:
        weight_gradient: Shape (O, I).
        bias_gradient: Shape (O,), not all zero.

    Returns:
        Shape (I,).

    Raises:
        ConfigError: The bias has no gradient.

    Example:
        >>> x, g = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -3.0])
        >>> invert_linear(torch.outer(g, x), g).tolist()
        [1.0, 2.0]
    """
    strength = bias_gradient @ bias_gradient
    if float(strength) == 0.0:
        raise ConfigError("the bias has no gradient: nothing to invert")
    # Least squares over all rows: each says the same, up to rounding.
    return weight_gradient.T @ bias_gradient / strength


def invert_gate(weight_gradient: Tensor, bias_gradient: Tensor, inner: Tensor, bias: Tensor):
    """Return the features behind a fresh feature gate, from the gradient of its outer layer.

    A fresh gate's outer layer is zero, so its inner one gets no gradient; but the outer layer's
    input is tanh(W x + b) with public W and b, and that is inverted first.

    Args:
        weight_gradient: Shape (D, D), of the outer weight.
        bias_gradient: Shape (D,), of the outer bias.
        inner: Shape (D, D), the inner weight W, public in the first round.
        bias: Shape (D,), the inner bias b.

    Returns:
        Shape (D,): the image's features before normalisation.
    """
    hidden = invert_linear(weight_gradient, bias_gradient).clamp(-1 + 1e-6, 1 - 1e-6)
    return torch.linalg.solve(inner.double(), (torch.atanh(hidden) - bias).double()).float()


def gradient_of(loss: Tensor, parameters: Sequence[Tensor], create_graph: bool = False) -> Tensor:
    """Return the gradient of a loss as one vector, zero where a parameter took no part."""
    grads = torch.autograd.grad(loss, parameters, create_graph=create_graph, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in grads])


def invert_gradient(
    observed: Tensor,
    parameters: Sequence[Tensor],
    loss: Loss,
    start: Tensor,
    *,
    steps: int = 300,
    rate: float = 0.05,
) -> Reconstruction:
    """Search for inputs whose gradient points where the observed one does.

    Minimises 1 − cosine by Adam (Geiping et al. 2020, equation 4, without the image prior: what
    is sought here are features).

    Args:
        observed: Shape (P,): gradient, or minus the update of one local step.
        parameters: The adapter's parameters, as the attacker knows them.
        loss: The client's loss as a function of the inputs; the model must be differentiable
            twice.
        start: First guess, of the inputs' shape.
        steps: Steps of Adam, at least 1.
        rate: Adam's rate, above 0.

    Returns:
        The best inputs seen.
    """
    guess = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=rate)
    best = Reconstruction(start.detach().clone(), 2.0)
    for _ in range(steps):
        gradient = gradient_of(loss(guess), parameters, create_graph=True)
        distance = 1 - torch.cosine_similarity(gradient, observed, dim=0)
        if distance.item() < best.distance:
            best = Reconstruction(guess.detach().clone(), distance.item())
        (guess.grad,) = torch.autograd.grad(distance, [guess])
        optimizer.step()
    return best


def observed_gradient(updates: Tensor, client: int, vantage: Vantage, rate: float) -> Tensor:
    """Return what a vantage has in place of one client's gradient, after one step of SGD.

    Args:
        updates: Shape (K, P), each client's new adapter less the old.
        client: The target.
        vantage: V1 sees the target's own; V2 the mean over clients, in which it is drowned.
        rate: The clients' learning rate.

    Raises:
        WrongVantageError: A vantage that sees no update.
    """
    if vantage is Vantage.V1:
        return -updates[client] / rate
    if vantage is Vantage.V2:
        return -updates.mean(dim=0) / rate
    raise WrongVantageError(f"gradient inversion needs an update, which {vantage} didn't see")
