"""SIGReg against independent computations."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from lewm_gym.nn.sigreg import SIGReg


def direct_statistic(projected: np.ndarray) -> float:
    """The Epps-Pulley integral over [-3, 3] of one direction's projections, by adaptive quadrature."""

    def integrand(t: float) -> float:
        phi = np.exp(1j * t * projected).mean()
        return abs(phi - np.exp(-t * t / 2)) ** 2 * np.exp(-t * t / 2)

    return len(projected) * quad(integrand, -3, 3, epsabs=1e-10)[0]


def autograd_statistic(latents: torch.Tensor, directions: torch.Tensor, sigreg: SIGReg) -> torch.Tensor:
    angles = (latents @ directions)[..., None] * sigreg.knots
    real = angles.cos().mean(dim=1) - sigreg.gaussian
    imaginary = angles.sin().mean(dim=1)
    return (latents.shape[1] * (real.square() + imaginary.square()) * sigreg.weights).sum(dim=-1).mean()


def test_statistic_equals_quadrature():
    rng = np.random.default_rng(0)
    projected = rng.normal(0.3, 1.4, 64)
    sigreg = SIGReg(1, n_knots=17)
    got = sigreg.statistic(torch.tensor(projected, dtype=torch.float32).view(1, -1, 1), torch.ones(1, 1))
    assert float(got) == pytest.approx(direct_statistic(projected), rel=2e-3)  # 17 knots of a trapezoid


def test_expected_value_on_gaussian_samples_does_not_depend_on_batch():
    sigreg = SIGReg(1024)
    for batch in (32, 512):
        torch.manual_seed(batch)
        values = [float(sigreg(torch.randn(16, batch, 64))) for _ in range(8)]
        assert np.mean(values) == pytest.approx(1.0525, abs=0.03)


def test_collapse_costs_in_proportion_to_batch():
    sigreg = SIGReg(64)
    for batch in (64, 256):
        assert float(sigreg(torch.zeros(4, batch, 8))) == pytest.approx(0.402 * batch, rel=1e-3)


def test_order_of_the_batch_does_not_matter():
    torch.manual_seed(0)
    latents = torch.randn(3, 50, 8)
    sigreg = SIGReg(32)
    directions = sigreg.draw_directions(latents)
    shuffled = latents[:, torch.randperm(50)]
    torch.testing.assert_close(sigreg.statistic(latents, directions), sigreg.statistic(shuffled, directions))


def test_gradient_equals_autograd_of_the_definition():
    torch.manual_seed(0)
    latents = (1.5 * torch.randn(4, 40, 6) + 0.2).requires_grad_()
    sigreg = SIGReg(128)
    directions = sigreg.draw_directions(latents)
    assert torch.allclose(directions.norm(dim=0), torch.ones(128))
    ours, expected = sigreg.statistic(latents, directions), autograd_statistic(latents, directions, sigreg)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    (got,) = torch.autograd.grad(ours, latents)
    (wanted,) = torch.autograd.grad(expected, latents)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def test_autocast_does_not_round_it():
    torch.manual_seed(0)
    latents, sigreg = torch.randn(4, 40, 6), SIGReg(128)
    directions = sigreg.draw_directions(latents)
    with torch.autocast("cpu", torch.bfloat16):
        got = sigreg.statistic(latents, directions)
    assert torch.equal(got, sigreg.statistic(latents, directions))


def test_minimising_it_makes_samples_gaussian():
    torch.manual_seed(0)
    latents = (torch.rand(1, 256, 2) ** 3).requires_grad_()
    sigreg = SIGReg(64)
    optimizer = torch.optim.Adam([latents], lr=0.05)
    before = float(sigreg(latents.detach()))
    for _ in range(200):
        optimizer.zero_grad()
        sigreg(latents).backward()
        optimizer.step()
    assert before > 20
    assert float(sigreg(latents.detach())) < 1.1
    assert torch.allclose(latents.detach().std(dim=1), torch.ones(2), atol=0.15)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="two knots"):
        SIGReg(8, n_knots=1)
