import math

import diffusers
import pytest
import torch

from pipelines.errors import InvalidInputError
from pipelines.noise import (
    flow_sigma,
    flow_time,
    karras_sigmas,
    linear_sigmas,
    logarithmic_sigmas,
    noise_table,
    timestep_sigmas,
)

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def test_karras_grid_is_the_paper_s():
    sigmas = karras_sigmas(5, 0.002, 80.0)
    expected = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    assert sigmas.tolist() == pytest.approx([*expected, 0.0], rel=1e-12)


@pytest.mark.parametrize("grid", [karras_sigmas, linear_sigmas, logarithmic_sigmas])
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_grids_fall_from_sigma_max_to_zero(grid, steps):
    sigmas = grid(steps, 0.03, 14.6)
    assert sigmas.shape == (steps + 1,)
    assert sigmas[0].item() == pytest.approx(14.6)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    if steps > 1:
        assert sigmas[-2].item() == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("steps", "low", "high", "field"), [(0, 0.1, 1, "steps"), (5, 0, 1, "sigmas"), (5, 2, 1, "sigmas")]
)
def test_a_grid_without_meaning_is_refused(steps, low, high, field):
    with pytest.raises(InvalidInputError) as refused:
        karras_sigmas(steps, low, high)
    assert refused.value.field == (field,)


@pytest.mark.parametrize(
    "config",
    [
        STABLE_DIFFUSION,
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 * (1 + i / 100) for i in range(200)], "num_train_timesteps": 200},
        STABLE_DIFFUSION | {"rescale_betas_zero_snr": True},
    ],
)
def test_tables_are_those_of_diffusers(config):
    cumulative = diffusers.DDIMScheduler(**config).alphas_cumprod.double()
    sigmas = noise_table(config).sigmas
    ours = 1 / (1 + sigmas**2)
    # diffusers computes in float32 what we compute in float64.
    torch.testing.assert_close(ours, cumulative, rtol=2e-4, atol=1e-7)


def test_zero_terminal_snr_leaves_a_finite_range():
    table = noise_table(STABLE_DIFFUSION | {"rescale_betas_zero_snr": True})
    assert math.isinf(table.sigmas[-1])
    assert 20 < table.sigma_max <= 160


def test_timestep_inverts_sigma():
    table = noise_table(STABLE_DIFFUSION)
    timesteps = torch.tensor([0.0, 0.25, 1.0, 17.5, 500.0, 998.75, 999.0], dtype=torch.float64)
    torch.testing.assert_close(table.timestep(table.sigma(timesteps)), timesteps, rtol=0, atol=1e-8)


def test_timesteps_of_trained_levels_are_whole_and_ends_hold():
    table = noise_table(STABLE_DIFFUSION)
    torch.testing.assert_close(table.timestep(table.sigmas), torch.arange(1000, dtype=torch.float64), rtol=0, atol=1e-8)
    outside = table.timestep(torch.tensor([1e-6, 1e6], dtype=torch.float64))
    assert outside.tolist() == pytest.approx([0, 999])


def test_timesteps_agree_with_diffusers_euler():
    # EulerDiscreteScheduler interpolates log σ in its own way; its Karras timesteps are the peer's answer.
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    ours = noise_table(STABLE_DIFFUSION).timestep(scheduler.sigmas[:-1].double())
    torch.testing.assert_close(ours, scheduler.timesteps.double(), rtol=0, atol=2e-3)


def test_the_table_s_own_grid_is_diffusers_linspace():
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    ours = timestep_sigmas(20, noise_table(STABLE_DIFFUSION))
    # diffusers interpolates σ linearly between timesteps, we interpolate log σ.
    torch.testing.assert_close(ours, scheduler.sigmas.double(), rtol=1e-4, atol=1e-5)


def test_levels_beyond_a_zero_snr_table_hold_its_last_finite_one():
    table = noise_table(STABLE_DIFFUSION | {"rescale_betas_zero_snr": True})
    last = table.sigma(torch.tensor([997.0, 998.0, 999.0], dtype=torch.float64))
    assert torch.isfinite(last).all()
    torch.testing.assert_close(last[1], table.sigmas[998])


def test_flow_time_and_sigma_are_inverse():
    sigma = torch.logspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(flow_sigma(flow_time(sigma)), sigma, rtol=1e-12, atol=0)


def test_an_unknown_beta_schedule_is_refused_by_name():
    with pytest.raises(InvalidInputError, match=r"sigmoid.*allowed are linear"):
        noise_table({"beta_schedule": "sigmoid"})
