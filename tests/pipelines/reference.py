"""One reverse step of a whole expression, written straight from the formulas: one sample, node by node, float64.

It shares no line with the product: no program, no Gram matrix, no padding, no batch. Every node carries its own vectors
up the tree; XOR and AtLeast are written out; the weights of a balanced AND are least squares on its conditions.
"""

import math
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from pipelines.composition import DECISIVE, And, AtLeast, Average, Method, Not, Or, Product, Prompt, Xor, leaves


@dataclass
class Answer:
    """What a model says of the sample under one condition: its x̂0, and the log-density so far."""

    denoised: np.ndarray
    log_q: float


@dataclass
class Node:
    """An expression at one sample.

    ``offset`` is h times its score, ``guided`` the same mix of guided leaves, ``away`` of the leaves' references.
    ``share`` has the coefficients of the leaves, in writing order. ``references`` lists (offset, log q) of the
    reference of every leaf beneath.
    """

    offset: np.ndarray
    guided: np.ndarray
    away: np.ndarray
    log_q: float
    share: np.ndarray
    references: list = field(default_factory=list)


def soft(values):
    """(softmax, logsumexp)."""
    values = np.asarray(values, float)
    powers = np.exp(values - values.max())
    return powers / powers.sum(), values.max() + math.log(powers.sum())


def mix(kappa, nodes, log_q):
    """Σ κ_c (node c), with the log-density that it is said to have."""
    parts = {
        name: sum(k * getattr(node, name) for k, node in zip(kappa, nodes, strict=True))
        for name in ("offset", "guided", "away", "share")
    }
    return Node(**parts, log_q=log_q, references=[r for node in nodes for r in node.references])


def either(nodes, biases=(), temperature=1.0):
    """OR_T with log prior odds."""
    biases = np.asarray(biases or [0.0] * len(nodes), float)
    prior, total = soft(biases)
    if temperature == 0:
        return mix(prior, nodes, float(prior @ [node.log_q for node in nodes]))
    kappa, log_sum = soft([temperature * node.log_q + b for node, b in zip(nodes, biases, strict=True)])
    return mix(kappa, nodes, (log_sum - total) / temperature)


def both(nodes, lifts=(), sharpness=0.1):
    """AND_λ, Dombi's conjunction, of log-densities less their lifts."""
    behind = [node.log_q - lift for node, lift in zip(nodes, lifts or [0.0] * len(nodes), strict=True)]
    kappa, log_sum = soft([-sharpness * value for value in behind])
    return mix(kappa, nodes, -(log_sum - math.log(len(nodes))) / sharpness)


def reference(node):
    """The mean of the references of a node's leaves, as a node."""
    offset = np.mean([offset for offset, _ in node.references], axis=0)
    log_q = float(np.mean([log_q for _, log_q in node.references]))
    return Node(offset, offset, offset, log_q, np.zeros_like(node.share), [])


def opposite(node, scale):
    """NOT_γ: (1 + γ) reference − γ node."""
    other = reference(node)
    turned = mix((1 + scale, -scale), (other, node), (1 + scale) * other.log_q - scale * node.log_q)
    turned.references = node.references
    return turned


@dataclass
class Reference:
    """One sample's step.

    Attributes:
        expression: Of the sample.
        prompts: What is said of it under each prompt.
        free: What is said of it under each model's reference branch, by model.
        z, noise: The sample and ξ.
        sigma, h, v, lifted, guidance: Of the step.
        unmet: After the step, whether no weights could balance it: terms on a line, or alike with unlike densities.
    """

    expression: object
    prompts: dict
    free: dict
    z: np.ndarray
    noise: np.ndarray
    sigma: float
    h: float
    v: float
    guidance: float
    lifted: float = 1.0
    unmet: bool = False

    def nodes(self):
        """The root, or the terms of a balanced AND; as nodes."""
        self._written = 0
        root = self.expression
        balanced = isinstance(root, And) and root.method is Method.BALANCED
        return [self.visit(term) for term in (root.terms if balanced else (root,))], balanced

    def visit(self, expression):
        """An expression as a node."""
        if isinstance(expression, Prompt):
            return self.leaf(expression)
        terms = [self.visit(term) for term in expression.terms]
        match expression:
            case Or(temperature=temperature, biases=biases):
                return either(terms, biases, temperature)
            case And(lifts=lifts, sharpness=sharpness):
                return both(terms, lifts, sharpness)
            case Not(scale=scale):
                return opposite(terms[0], scale)
            case Average(weights=weights):
                share = np.asarray(weights or [1.0] * len(terms)) / sum(weights or [1.0] * len(terms))
                return mix(share, terms, float(share @ [term.log_q for term in terms]))
            case Product(weights=weights):
                betas = [*(weights or [1.0] * len(terms))]
                betas.append(1 - sum(betas))
                terms.append(reference(mix(betas[:-1], terms, 0.0)))
                return mix(betas, terms, sum(b * term.log_q for b, term in zip(betas, terms, strict=True)))
            case Xor(biases=biases, sharpness=sharpness, scale=scale):
                others = len(terms) - 1
                cases = [
                    both([t, *(opposite(o, scale / others) for o in terms if o is not t)], sharpness=sharpness)
                    for t in terms
                ]
                return self.once(either(cases, [DECISIVE * b for b in biases], DECISIVE), terms)
            case AtLeast(count=count, sharpness=sharpness):
                some = [both(subset, sharpness=sharpness) for subset in combinations(terms, count)]
                return self.once(either(some, temperature=DECISIVE), terms)

    @staticmethod
    def once(node, terms):
        """A node that was written out of several copies of its terms has the references of one."""
        node.references = [r for term in terms for r in term.references]
        return node

    def leaf(self, prompt):
        """A prompt as a node."""
        own, other = self.prompts[prompt], self.free[prompt.model]
        delta, delta_u = (self.h * (answer.denoised - self.z) / self.sigma**2 for answer in (own, other))
        share = np.zeros(len(self.written()))
        share[self._written] = 1
        self._written += 1
        guided = delta_u + self.guidance * (delta - delta_u)
        return Node(delta, guided, delta_u, own.log_q, share, [(delta_u, other.log_q)])

    def written(self):
        """The prompts in writing order."""
        return leaves(self.expression)

    def log_density(self):
        """ℓ of the root, before the step."""
        (root,), _ = self.nodes()
        return root.log_q

    def step(self):
        """(z, the leaves' log q, {model: its reference's log q}, the leaves' coefficients, the log ratio)."""
        terms, balanced = self.nodes()
        n = math.sqrt(self.v) * self.noise
        if balanced:
            kappa = self.balance(terms, n)
            mixed = mix(kappa, terms, math.nan)
            common = np.mean([term.away for term in terms], axis=0)
            moved, share = common + self.guidance * (mixed.offset - common), mixed.share
        else:
            moved, share = terms[0].guided, terms[0].share
        d = moved + n
        log_q = np.array([self.after(self.prompts[prompt], d) for prompt in self.written()])
        free = {model: self.after(answer, d) for model, answer in self.free.items()}
        ratio = 0.0 if self.v == 0 else self.log_normal(d, self.h) - self.log_normal(n, self.v)
        return self.z + d, log_q, free, share, ratio

    def after(self, answer, d):
        """log q after the step d: + log N(z_s; μ_i, v) − log N(z_t; z_s, h)."""
        if self.v == 0:
            return answer.log_q
        delta = self.h * (answer.denoised - self.z) / self.sigma**2
        return answer.log_q + self.log_normal(d - delta, self.v) - self.log_normal(d, self.h)

    @staticmethod
    def log_normal(x, variance):
        """log N(x; 0, variance I)."""
        return -(x @ x) / (2 * variance) - len(x) / 2 * math.log(2 * math.pi * variance)

    def balance(self, terms, n):
        """κ of the balanced AND, the paper's Proposition 6 for M terms against the last one.

        w Σ_j <D_i, δ_j> x_j = (|δ_i|² − |δ_M|²)/2 − <δ_ū + w(mean δ − δ_ū) + n, D_i> + v (L_i − L_M), Σ x = 0, and of
        all solutions the least. L_i is what term i still misses of the lift that it shall have after this step.
        """
        delta = np.stack([term.offset for term in terms])
        lifts = self.lifted * np.asarray(self.expression.lifts or [0.0] * len(terms))
        lifts = lifts - [term.log_q for term in terms]
        w, last = self.guidance, delta[-1]
        differences = delta[:-1] - last
        common = np.mean([term.away for term in terms], axis=0)
        base = common + w * (delta.mean(0) - common) + n
        wanted = ((delta[:-1] ** 2).sum(1) - last @ last) / 2 - differences @ base
        wanted = wanted + self.v * (lifts[:-1] - lifts[-1])
        system = np.vstack([w * differences @ delta.T, np.ones(len(delta))])
        wanted = np.append(wanted, 0.0)
        solution, *_ = np.linalg.lstsq(system, wanted, rcond=1e-10)
        self.unmet = np.abs(system @ solution - wanted).max() > 1e-9 * np.abs(wanted).max()
        return 1 / len(delta) + solution


def a_sample(rng, expression, dimension=64, guidance=1.0, spread=None, **given):
    """A random sample's step.

    The log-densities so far have the standard deviation ``spread``: by default 3, but 0 for a balanced AND, which then
    gains alike in all terms.
    """
    if spread is None:
        spread = 0.0 if isinstance(expression, And) and expression.method is Method.BALANCED else 3.0
    sigma_t = float(rng.uniform(0.3, 8))
    sigma_s = sigma_t * float(rng.uniform(0.4, 0.95))
    h = sigma_t**2 - sigma_s**2

    def answer():
        return Answer(rng.normal(size=dimension), spread * float(rng.normal()))

    asked = dict.fromkeys(leaves(expression))
    made = {
        "prompts": {prompt: answer() for prompt in asked},
        "free": {model: answer() for model in dict.fromkeys(prompt.model for prompt in asked)},
        "z": sigma_t * rng.normal(size=dimension),
        "noise": rng.normal(size=dimension),
        "sigma": sigma_t,
        "h": h,
        "v": h * float(rng.uniform(0.3, 1.0)),
        "guidance": guidance,
    }
    return Reference(expression, **made | given)
