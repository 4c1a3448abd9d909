"""One reverse step of ours equals one of diffusers' schedulers, for any network output."""

import pytest
import torch
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from pipelines.composition import Prompt
from pipelines.kernel import Kernel, transitions
from pipelines.mixing import compile_program
from pipelines.noise import noise_table
from pipelines.prediction import Prediction, to_noise
from pipelines.superposition import Course, Rule, superpose

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KINDS = ("epsilon", "v_prediction", "sample")
SHAPE = (4, 3, 4, 4)


def our_step(z, output, noise, kind, sigmas, kernel):
    """One step of one component from sigmas[0] to sigmas[1], float64."""
    h, v = transitions(kernel, sigmas, torch.zeros(1))
    sigma = sigmas[:1].expand(len(z))
    predicted = to_noise(Prediction(kind), output, z, sigma)
    rule = Rule.join([(compile_program(Prompt("", "m"), ()), len(z), 1.0)])
    course = Course(sigma, *(x.expand(len(z)) for x in (h, v, torch.zeros(1, dtype=torch.float64))))
    log_q = torch.zeros(len(z), 1, dtype=torch.float64)
    return superpose(z, log_q, predicted[:, None], noise, course, rule).z


def draws():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [0, 7, 18])
def test_deterministic_is_euler(kind, index):
    scheduler = EulerDiscreteScheduler(**CONFIG, prediction_type=kind, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas[index : index + 2].double()
    z, output, noise = draws()
    z = z * sigmas[0]
    scheduler._step_index = index
    theirs = scheduler.step(output, scheduler.timesteps[index], z).prev_sample
    torch.testing.assert_close(
        our_step(z, output, noise, kind, sigmas, Kernel.DETERMINISTIC), theirs, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS[:2])
def test_posterior_is_euler_ancestral(kind, monkeypatch):
    scheduler = EulerAncestralDiscreteScheduler(**CONFIG, prediction_type=kind)
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas[6:8].double()
    z, output, noise = draws()
    z = z * sigmas[0]
    scheduler._step_index = 6
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: noise)
    theirs = scheduler.step(output, scheduler.timesteps[6], z).prev_sample
    torch.testing.assert_close(our_step(z, output, noise, kind, sigmas, Kernel.POSTERIOR), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timestep", [999, 400, 50])
def test_posterior_is_ddpm(kind, timestep, monkeypatch):
    """DDPM steps x = z/√(1 + σ²); the same step in z after scaling."""
    scheduler = DDPMScheduler(**CONFIG, prediction_type=kind, clip_sample=False)
    table = noise_table(CONFIG).sigmas
    sigmas = table[[timestep, timestep - 1]]
    scale = (1 + sigmas**2).sqrt()
    x, output, noise = draws()
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: noise)
    theirs = scheduler.step(output, timestep, x).prev_sample
    ours = our_step(x * scale[0], output, noise, kind, sigmas, Kernel.POSTERIOR) / scale[1]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
