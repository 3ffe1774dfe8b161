"""Figures of held-out items are means over the items: the same to the bit whatever the batch size."""

import math

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from scripts.networks.autoencoder import JointAutoencoder
from scripts.networks.hvae import HVAE
from scripts.networks.latent_diffusion import LatentDiffusion
from scripts.networks.lsgan import Discriminator, Generator
from scripts.training.autoencoder import AutoencoderEvaluation
from scripts.training.diffusion import DiffusionEvaluation
from scripts.training.evaluation import ItemEvaluation, item_means
from scripts.training.hvae import HVAEEvaluation
from scripts.training.lsgan import LSGANEvaluation

LEVELS = {"norm_groups": 4, "channels": [8, 8], "num_res_blocks": 1, "latent_channels": 2}
ITEMS = [{"image": (torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(i)) > 0.6).float()} for i in range(5)]


class Held:
    """Stands for a training set."""

    training = [{"image": 1 - item["image"]} for item in ITEMS]


def hvae():
    network = HVAE(2, 16, channels=(8, 8), num_res_blocks=1, latent_channels=2, attention_heads=1, num_leapfrog_steps=1)
    return network, HVAEEvaluation(3), ["neg_elbo"]


def autoencoder():
    return JointAutoencoder(2, [16, 16], attention_levels=[False] * 2, **LEVELS), AutoencoderEvaluation(1, 3), ["loss"]


def diffusion():
    network = LatentDiffusion(2, [16, 16], [8, 8], 1, 2, [False] * 2, [8, 8], 1, [False] * 2, norm_groups=4)
    return network, DiffusionEvaluation(3), ["noise_loss", "noise_loss_q1", "noise_loss_q4"]


def lsgan():
    evaluation = LSGANEvaluation(Held(), Discriminator(2, (16, 16), (8, 8)), count=4)
    return Generator(2, (16, 16), (8, 8), latent_size=4), evaluation, ["energy", "score_held_out"]


def evaluated(network, evaluation, names, batch_size) -> dict[str, float]:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=DataLoader(Dataset(ITEMS), batch_size=batch_size), network=network,
        iteration_update=evaluation, key_val_metric=item_means(**{name: name for name in names}), decollate=False,
    )  # fmt: skip
    evaluator.run()
    return {name: evaluator.state.metrics[name] for name in names}


@pytest.mark.parametrize("family", [hvae, autoencoder, diffusion, lsgan])
def test_figures_do_not_depend_on_the_batch_size(family):
    torch.manual_seed(0)
    network, evaluation, names = family()
    one = evaluated(network, evaluation, names, 1)
    assert all(math.isfinite(value) for value in one.values())
    for batch_size in (2, 4, 5):
        assert evaluated(network, evaluation, names, batch_size) == one


def test_the_mean_is_that_of_the_items():
    class Known(ItemEvaluation):
        def item(self, network, x, noise):
            return {"value": x.sum(), "noise": torch.randn((), generator=noise)}

    found = evaluated(torch.nn.Identity(), Known(), ["value", "noise"], 4)
    assert found["value"] == pytest.approx(sum(float(item["image"].sum()) for item in ITEMS) / 5)
    draws = [float(torch.randn((), generator=torch.Generator().manual_seed(i))) for i in range(5)]
    assert len(set(draws)) == 5 and found["noise"] == pytest.approx(sum(draws) / 5)
