"""Layers whose parameters are perturbed by noise that is handed to them (Fortunato et al. 2018, arXiv 1706.10295)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpc_rl.nets.torsos import ConvTorso, MlpTorso, image
from hpc_rl.types import Spec

TINY = 1e-6  # keeps a uniform away from 0 and 1, whose normal quantiles are infinite


def factors(uniform: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """f(s z) [n, M] of uniforms [n, M]: z their normal quantiles, f(x) = sgn(x) √|x|, ``scale`` s [n, 1] or a number.

    Products of two of them perturb weights, so s scales every perturbation; 0 leaves the means.
    """
    z: Tensor = scale * torch.special.ndtri(uniform.double().clamp(TINY, 1 - TINY)).float()
    return z.sign() * z.abs().sqrt()


class NoisyLinear(nn.Module):
    """y = (μ + σ ⊙ ε) x + μ' + σ' ⊙ ε', ε_ij = f(z_i) f(z_j) and ε'_i = f(z_i): factorised Gaussian noise, eq. 9 to 11.

    The first p of the row ``noise`` [n or 1, p + q] belong to inputs, the other q to outputs: every row of x may have a
    noise of its own for one more matrix product, (σ ⊙ ε) x = ε_out ⊙ σ (ε_in ⊙ x). μ begins uniform in ±1/√p, σ at
    ``sigma``/√p, those of the bias as well (section 3.2).
    """

    def __init__(self, inputs: int, outputs: int, sigma: float) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), sigma * bound))
        self.inputs, self.noise = inputs, inputs + outputs

    def extra_repr(self) -> str:
        return f"{self.inputs} → {len(self.bias)}, with noise"

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """x [n, p], noise [n or 1, p + q] of `factors` -> [n, q]."""
        into, out = noise[:, : self.inputs], noise[:, self.inputs :]
        mean = nn.functional.linear(x, self.weight, self.bias)
        return mean + out * nn.functional.linear(x * into, self.weight_sigma, self.bias_sigma)


class NoisyStream(nn.Module):
    """A noisy layer as wide as the features, ReLU, a noisy layer of ``outputs``."""

    def __init__(self, features: int, outputs: int, sigma: float) -> None:
        super().__init__()
        self.hidden, self.output = NoisyLinear(features, features, sigma), NoisyLinear(features, outputs, sigma)
        self.noise = self.hidden.noise + self.output.noise

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        first, second = noise[:, : self.hidden.noise], noise[:, self.hidden.noise :]
        y: Tensor = self.output(torch.relu(self.hidden(x, first)), second)
        return y


class NoisyCategoricalQ(nn.Module):
    """observation [n, *O], noise [n or 1, M] of `factors` -> logits [n, A, N] of the return of each discrete choice.

    ``dueling``: logits = V + advantage − mean of the advantages, atom by atom (Hessel et al. 2018, arXiv 1710.02298).
    """

    def __init__(
        self, spec: Spec, hidden: tuple[int, ...], network: str, atoms: int, dueling: bool, sigma: float
    ) -> None:
        super().__init__()
        self.shape, self.actions, self.atoms = spec.observation, spec.actions.sizes[0], atoms
        self.planes = image(spec.observation, spec.dtype)
        self.torso = ConvTorso(self.planes, network) if self.planes else MlpTorso(self.shape, hidden, nn.ReLU)
        features = self.torso.features
        self.value = NoisyStream(features, atoms, sigma) if dueling else None
        self.advantage = NoisyStream(features, self.actions * atoms, sigma)
        self.noise = self.advantage.noise + (self.value.noise if self.value else 0)  # M

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        x = observation if self.planes is None else observation.reshape(-1, *self.planes)
        features = self.torso(x)
        logits: Tensor = self.advantage(features, noise[:, : self.advantage.noise])
        logits = logits.reshape(-1, self.actions, self.atoms)
        if self.value is not None:
            value = self.value(features, noise[:, self.advantage.noise :])
            logits = value[:, None] + logits - logits.mean(1, keepdim=True)
        return logits
