"""One reverse step, written straight from the formulas: one sample, one component after another, float64.

It shares no line with the product: no Gram matrix, no padding, no batch; weights of AND by least squares on the
conditions themselves.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Reference:
    """One sample's step.

    ``branches[i]`` is the unconditional x̂0 that component i is guided against; one entry a component.
    """

    operator: str
    z: np.ndarray
    log_q: np.ndarray
    denoised: np.ndarray
    branches: np.ndarray
    noise: np.ndarray
    sigma: float
    h: float
    v: float
    guidance: float
    numbers: np.ndarray
    temperature: float = 1.0

    def step(self):
        """(new z, new log q, κ)."""
        delta = self.h * (self.denoised - self.z) / self.sigma**2
        delta_u = self.h * (self.branches - self.z) / self.sigma**2
        n = math.sqrt(self.v) * self.noise
        w, kappa = self.guidance, self.weights(delta, delta_u, n)
        if self.operator == "and":
            mean_u = delta_u.mean(0)
            d = mean_u + w * (kappa @ delta - mean_u) + n
        elif self.operator == "product":
            d = delta_u.mean(0) + w * (kappa @ (delta - delta_u)) + n
        else:
            d = kappa @ (delta_u + w * (delta - delta_u)) + n
        return self.z + d, self.log_q + self.increments(d, delta), kappa

    def increments(self, d, delta):
        """log N(z_s; μ_i, v) − log N(z_t; z_s, h)."""
        if self.v == 0:
            return np.zeros(len(delta))
        size = len(self.z)
        forward = -(d @ d) / (2 * self.h) - size / 2 * math.log(2 * math.pi * self.h)
        reverse = -((d - delta) ** 2).sum(1) / (2 * self.v) - size / 2 * math.log(2 * math.pi * self.v)
        return reverse - forward

    def weights(self, delta, delta_u, n):
        """κ."""
        count = len(delta)
        if self.operator == "or":
            logits = self.temperature * self.log_q + self.numbers
            powers = np.exp(logits - logits.max())
            return powers / powers.sum()
        if self.operator in ("average", "product"):
            return self.numbers
        # AND, the paper's Proposition 6 for M components against the last one, least squares for the least κ − 1/M:
        # w Σ_j <D_i, δ_j> x_j = (|δ_i|² − |δ_M|²)/2 − <δ_u + w(mean δ − δ_u) + n, D_i> + v (L_i − L_M), Σ x = 0.
        w, last = self.guidance, delta[-1]
        differences = delta[:-1] - last
        mean_u = delta_u.mean(0)
        base = mean_u + w * (delta.mean(0) - mean_u) + n
        wanted = ((delta[:-1] ** 2).sum(1) - last @ last) / 2 - differences @ base
        wanted = wanted + self.v * (self.numbers[:-1] - self.numbers[-1])
        system = np.vstack([w * differences @ delta.T, np.ones(count)])
        solution, *_ = np.linalg.lstsq(system, np.append(wanted, 0.0), rcond=1e-10)
        return 1 / count + solution
