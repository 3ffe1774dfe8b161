"""Diffusion against its closed forms and MONAI's own loop."""

import warnings

import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDPMScheduler
from torch import nn

from scripts.networks.latent_diffusion import SCHEDULE, Denoiser, EvenDDIMScheduler, LatentDiffusion, ScaleShiftBlock
from scripts.runtime.errors import InputError

TINY = {
    "num_channels": 2, "spatial_size": [16, 16], "channels": [8, 8], "num_res_blocks": 1, "latent_channels": 2,
    "attention_levels": [False, False], "denoiser_channels": [8, 8], "denoiser_res_blocks": 1,
    "denoiser_attention": [False, False], "norm_groups": 4, "head_channels": 4, "num_inference_steps": 4,
}  # fmt: skip


def tiny(**settings):
    """A small network whose outputs are not 0, as MONAI initialises them."""
    torch.manual_seed(0)
    network = LatentDiffusion(**{**TINY, **settings}).eval()
    with torch.no_grad():
        for parameter in network.denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


class Gaussian(nn.Module):
    """The best predictor of the noise when the latents are N(mean, covariance), for two numbers each."""

    def __init__(self, mean, covariance):
        super().__init__()
        self.mean, self.covariance = mean, covariance
        self.alpha_bar = DDPMScheduler(1000, **SCHEDULE).alphas_cumprod.double()

    def forward(self, z, t, condition=None, keep=None):
        a = self.alpha_bar[t[0]]
        marginal = a * self.covariance + (1 - a) * torch.eye(2, dtype=z.dtype)
        solved = torch.linalg.solve(marginal, (z.flatten(1) - a.sqrt() * self.mean).T).T
        return ((1 - a).sqrt() * solved).reshape(z.shape)


def toy(mean, covariance):
    network = tiny().with_denoiser(Gaussian(mean, covariance))
    network.decode_latents = lambda z: z
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler, num_steps, error",
    [("ddim", 50, 0.08), ("ddim", 250, 0.04), ("ddpm", 1000, 0.04), ("dpm", 10, 0.1), ("dpm", 20, 0.07)],
)
def test_sampling_recovers_a_gaussian(scheduler, num_steps, error):
    """With the best noise predictor the samples have the mean and covariance of the data.

    0.04 is what 10,000 pairs of draws leave; DDIM's error falls with the size of its steps.
    """
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def noise(index=0):
        half = torch.randn(10_000, 2, 1, 1, generator=generator, dtype=torch.float64)
        return torch.cat([half, -half])  # antithetic: the mean is exact but for the diffusion

    made = toy(mean, covariance).sample(
        noise(), scheduler=scheduler, num_steps=num_steps, noises=noise if scheduler == "ddpm" else None
    ).flatten(1)  # fmt: skip
    assert torch.allclose(made.mean(0), mean, atol=0.02)
    assert torch.allclose(torch.cov(made.T), covariance, atol=error)


def test_forward_noising_has_the_closed_form():
    """z_t ~ N(sqrt(alpha_bar) z_0, 1 - alpha_bar), as T steps of eq. 1 give it."""
    scheduler = tiny().ddpm
    betas = torch.linspace(0.002**0.5, 0.02**0.5, 1000) ** 2
    torch.testing.assert_close(scheduler.betas, betas)
    z_0 = torch.full((200_000, 1), 2.0)
    noise = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0))
    factor, variance = 1.0, 0.0
    for t in range(600):
        factor *= float((1 - betas[t]).sqrt())
        variance = float((1 - betas[t]) * variance + betas[t])
    z_t = scheduler.add_noise(z_0, noise, torch.full((len(z_0),), 599))
    assert z_t.mean().item() == pytest.approx(2 * factor, abs=5e-3)
    assert z_t.var().item() == pytest.approx(variance, rel=1e-2)


@pytest.mark.parametrize("num_steps", [1, 4, 50, 1000])
def test_ddim_goes_back_to_where_it_looks_next(num_steps):
    scheduler = EvenDDIMScheduler(1000, **SCHEDULE)
    scheduler.set_timesteps(num_steps)
    times = scheduler.timesteps.tolist()
    assert len(times) == num_steps and times[0] == 999
    assert [t - 1000 // num_steps for t in times] == [*times[1:], -1]


def test_ddim_agrees_with_monai():
    network = tiny()
    noise = torch.randn(3, *network.latent_shape, generator=torch.Generator().manual_seed(1))
    network.ddim.set_timesteps(10)
    theirs = DiffusionInferer(network.ddim).sample(noise, network.denoiser.unet, network.ddim, verbose=False)
    torch.testing.assert_close(network.sample(noise, num_steps=10), network.decode_latents(theirs))


def test_velocity_agrees_with_monai():
    network = tiny(prediction_type="v_prediction")
    noise = torch.randn(2, *network.latent_shape, generator=torch.Generator().manual_seed(1))
    scheduler = EvenDDIMScheduler(1000, **SCHEDULE, prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    with torch.no_grad():
        theirs = DiffusionInferer(scheduler).sample(noise, network.denoiser.unet, scheduler, verbose=False)
    torch.testing.assert_close(network.sample(noise, num_steps=10), network.decode_latents(theirs))


def test_noise_and_velocity_say_the_same_of_latents():
    network, t = tiny(prediction_type="v_prediction"), torch.tensor([0, 300, 999])
    z_0, noise = torch.randn(2, 3, *network.latent_shape)
    network.denoiser.forward = lambda z, t, *rest: network.target(z_0, noise, t)
    torch.testing.assert_close(network.predict_noise(network.ddpm.add_noise(z_0, noise, t), t), noise)


def test_ddpm_agrees_with_monai():
    network = tiny(num_train_timesteps=20, num_inference_steps=4)
    noise = torch.randn(2, *network.latent_shape, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    with torch.no_grad():
        theirs = DiffusionInferer(network.ddpm).sample(noise, network.denoiser.unet, network.ddpm, verbose=False)
    torch.manual_seed(7)  # MONAI draws one noise for each step but the last
    ours = network.sample(noise, scheduler="ddpm", num_steps=20, noises=lambda index: torch.randn(noise.shape))
    torch.testing.assert_close(ours, network.decode_latents(theirs))


def test_a_sample_of_ddpm_depends_on_its_own_noise_alone():
    network = tiny(num_train_timesteps=20, num_inference_steps=4)
    noise = torch.randn(3, *network.latent_shape)
    steps = torch.randn(20, 3, *network.latent_shape)
    together = network.sample(noise, scheduler="ddpm", num_steps=20, noises=lambda index: steps[index])
    alone = network.sample(noise[1:2], scheduler="ddpm", num_steps=20, noises=lambda index: steps[index, 1:2])
    torch.testing.assert_close(together[1:2], alone)


def test_guidance():
    """Scale 1 is the conditional, 0 the unconditional, and what is between and beyond is linear in the noise."""
    network = tiny(num_conditions=9)
    z, t = torch.randn(3, *network.latent_shape), torch.tensor([5, 400, 990])
    condition = torch.rand(3, 9)
    conditional, null = network.predict_noise(z, t, condition), network.predict_noise(z, t)
    assert (conditional - null).abs().max() > 1e-3
    for scale in (0.0, 0.3, 1.0, 3.0):
        guided = network._guided_noise(z, t, condition, scale)
        torch.testing.assert_close(guided, null + scale * (conditional - null))
    noise = torch.randn(3, *network.latent_shape)
    torch.testing.assert_close(network.sample(noise, condition, num_steps=4, guidance_scale=0.0), network(noise))
    guided = network.sample(noise, condition, num_steps=4, guidance_scale=2.0)
    assert not torch.allclose(guided, network.sample(noise, condition, num_steps=4))


def test_null_embedding_per_sample():
    network = tiny(num_conditions=9)
    z, t, condition = torch.randn(4, *network.latent_shape), torch.full((4,), 300), torch.rand(4, 9)
    keep = torch.tensor([True, False, True, False])
    mixed = network.predict_noise(z, t, condition, keep)
    torch.testing.assert_close(mixed[keep], network.predict_noise(z[keep], t[keep], condition[keep]))
    torch.testing.assert_close(mixed[~keep], network.predict_noise(z[~keep], t[~keep]))
    mixed.sum().backward()
    assert network.denoiser.null_embedding.grad.abs().max() > 0
    assert network.denoiser.condition_embedding[0].weight.grad.abs().max() > 0


def test_the_embedding_scales_and_shifts():
    """h = norm(h) * (1 + scale) + shift: with scale -1 the block sees nothing of its input but through the skip."""
    denoiser = tiny(num_conditions=9).denoiser
    blocks = [module for module in denoiser.modules() if isinstance(module, ScaleShiftBlock)]
    assert len(blocks) == 2 + 2 + 2 * 2
    assert not any(type(module).__name__ == "DiffusionUNetResnetBlock" for module in denoiser.modules())
    block, width = blocks[0], blocks[0].out_channels
    with torch.no_grad():
        block.time_emb_proj.weight.zero_()
        block.time_emb_proj.bias[:width] = -1.0
        block.time_emb_proj.bias[width:] = 0.5
    x = torch.randn(2, block.channels, 4, 4)
    rest = block(x, torch.zeros(2, block.emb_channels)) - block.skip_connection(x)
    torch.testing.assert_close(rest, block.conv2(torch.nn.functional.silu(torch.full((2, width, 4, 4), 0.5))))


@pytest.mark.parametrize("attention, expected", [([False, False], 0), ([False, True], 4), ([True, True], 7)])
def test_attention_only_where_the_levels_say(attention, expected):
    denoiser = Denoiser(2, 2, [8, 8], 1, attention, head_channels=4, norm_groups=4)
    assert sum(type(module).__name__ == "SpatialAttentionBlock" for module in denoiser.modules()) == expected


def test_latents_are_scaled():
    network = tiny()
    x = torch.rand(2, 2, 16, 16)
    before = network.encode_latents(x)
    probabilities = network.decode_latents(before[0])
    network.latent_std.fill_(4.0)
    after = network.encode_latents(x)
    torch.testing.assert_close(after, tuple(part / 4 for part in before))
    torch.testing.assert_close(network.decode_latents(after[0]), probabilities)
    assert "latent_std" in network.state_dict()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("more", [{}, {"wavelet_levels": 2},
                                  {"num_conditions": 9, "slice_wise": True, "spatial_size": [16, 16, 4],
                                       "chunk_size": 3, "denoiser_attention": [False, True]}])  # fmt: skip
def test_script_equals_eager(more, tmp_path):
    """As MONAI exports networks; also in a batch of another size than that of the traces inside."""
    network = tiny(**more)
    torch.jit.save(torch.jit.script(network), tmp_path / "network.ts")
    other = torch.randn(3, *network.latent_shape)
    made = network(other)
    assert made.shape == (3, 2, *network.autoencoder.reconstruct(made).shape[2:]) and not made.requires_grad
    assert 0 <= made.min() and made.max() <= 1
    # no sigmoid squeezes what wavelets give
    rounding = {"atol": 1e-4, "rtol": 1e-3} if more.get("wavelet_levels") else {}
    torch.testing.assert_close(torch.jit.load(tmp_path / "network.ts")(other), made, **rounding)


def test_another_denoiser_shares_the_rest():
    network, other = tiny(), tiny(num_conditions=0)
    with torch.no_grad():
        for parameter in other.denoiser.parameters():
            parameter.mul_(0.5)
    view = network.with_denoiser(other.denoiser)
    assert view.autoencoder is network.autoencoder and view.latent_std is network.latent_std
    assert set(view.state_dict()) == set(network.state_dict())
    noise = torch.randn(1, *network.latent_shape)
    assert torch.equal(view.denoiser(noise, torch.tensor([3])), other.denoiser(noise, torch.tensor([3])))
    assert not torch.allclose(view(noise), network(noise))
    network.latent_std.fill_(2.0)
    assert view.latent_std == 2


def test_paper_size_has_159_million_parameters():
    with torch.device("meta"), warnings.catch_warnings():
        network = LatentDiffusion(
            2, [192, 192, 96], [128, 256, 384, 512], 1, 4, [False, False, False, True],
            [64, 128, 256, 512], 1, [False] * 4, slice_wise=True, num_conditions=9,
        )  # fmt: skip
    assert network.latent_shape == (4, 24, 24, 96)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(159e6, rel=0.005)


def test_few_steps_of_second_order_keep_fine_detail_that_many_of_first_order_lose():
    """Directions in which the data hardly vary: there the last steps, at little noise, decide."""
    narrow = 0.04 * torch.eye(2, dtype=torch.float64)
    network = toy(torch.zeros(2, dtype=torch.float64), narrow)
    noise = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    few, many = (network.sample(noise, scheduler=s, num_steps=n) for s, n in (("dpm", 10), ("ddim", 50)))
    assert abs(float(few.mean()) / 0.2 - 1) < 0.05 and abs(float(many.mean()) / 0.2 - 1) > 0.2


@pytest.mark.parametrize(
    "call, words",
    [
        ({"scheduler": "euler"}, "one of .*'dpm'"),
        ({"scheduler": "dpm", "num_steps": 200}, "at one time"),
        ({"num_steps": 51}, "num_steps 51"),
        ({"num_steps": 0}, "num_steps 0"),
        ({"scheduler": "ddpm", "num_steps": 50}, "every step"),
        ({"scheduler": "ddpm", "num_steps": 1000}, "noises with ddpm"),
        ({"guidance_scale": 2.0}, "unconditional"),
        ({"condition": torch.zeros(1, 9)}, "conditioned network"),
    ],
)
def test_sampling_that_cannot_be(call, words):
    network = tiny()
    with pytest.raises(InputError, match=words):
        network.sample(torch.zeros(1, *network.latent_shape), **call)


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"denoiser_channels": [8, 8, 8, 8, 8], "denoiser_attention": [False] * 5}, "multiples of 16"),
        ({"denoiser_channels": [8, 10]}, "norm_groups"),
        ({"denoiser_attention": [True]}, "one flag"),
        ({"denoiser_attention": [False, True], "head_channels": 3}, "head_channels"),
        ({"num_inference_steps": 7}, "num_steps 7"),
    ],
)
def test_settings_out_of_range(setting, words):
    with pytest.raises(InputError, match=words):
        LatentDiffusion(**{**TINY, **setting})
