"""Networks on a GPU, their batches and their noise on the CPU: steps, evaluations and samples, without a GPU."""

from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from monai.engines.utils import default_prepare_batch
from monai.inferers import SimpleInferer
from monai.losses import DiceFocalLoss
from monai.networks.nets import DynUNet
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scripts.losses.adversarial import patch_discriminator
from scripts.losses.feature_reconstruction import FeatureReconstructionLoss
from scripts.networks.features import SegmentationFeatures
from scripts.networks.hvae import HVAE
from scripts.networks.latent_diffusion import LatentDiffusion
from scripts.networks.lesion_flow import LesionFlow
from scripts.networks.lsgan import Discriminator, Generator
from scripts.training import autoencoder, diffusion, flow, hvae, lsgan, segmentation
from scripts.training.averaging import WeightAverage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.backends.cuda.is_built() and hasattr(torch._C, "_ensureCUDADeviceGuardSet")),
        reason=f"the fake mode of torch {torch.__version__} moves nothing to CUDA without a GPU",
    ),
    # The fake mode looks at the gradient of any tensor, and numbers that are read as 1 need not fit each other.
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning", "ignore:cov:UserWarning"),
]
aten = torch.ops.aten


class FakeCuda(TorchDispatchMode):
    """Over torch's fake mode: CPU tensors are real; those on CUDA have no numbers, and are ones where they are read."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        if not any(isinstance(x, FakeTensor) or getattr(x, "type", None) == "cuda" for x in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in (aten._local_scalar_dense.default, aten.equal.default):
            return 1.0 if func is not aten.equal.default and args[0].is_floating_point() else True
        on_cuda = [x.is_cuda for x in given if isinstance(x, torch.Tensor)]
        if (  # what a GPU refuses and the fake mode does not
            any(isinstance(x, torch.Generator) for x in given)  # of the CPU, like all of these tests
            or (func in (aten.cat.default, aten.stack.default) and not all(on_cuda))
            or (func is aten.index.Tensor and not on_cuda[0])
        ):
            raise RuntimeError(f"{func} with the CPU and CUDA")
        made = func(*args, **kwargs)
        self.dtypes |= {x.dtype for x in tree_leaves(made) if isinstance(x, torch.Tensor)}
        if isinstance(made, torch.Tensor) and not made.is_cuda:
            with unset_fake_temporarily():
                return torch.ones(made.shape, dtype=made.dtype)
        return made


@pytest.fixture
def cuda(monkeypatch):
    """No driver is asked for anything: gradients are left out, and autocast takes the GPU for one with bfloat16."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.autograd, "grad", lambda _, inputs, **__: (torch.zeros_like(inputs),))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: None)
    with FakeTensorMode(allow_non_fake_inputs=True), FakeCuda() as mode:
        yield mode


# `samples` gives what the network makes of the item on CUDA and of noise; the rest of the evaluation is on the CPU.
Family = namedtuple("Family", "network update batch evaluation item samples")


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def masked(*shape):
    return (noise(*shape) > 0.5).float()


def on_cuda(network):
    for part in network.modules():  # each once: the fake mode moves no parameter twice
        part._apply(lambda x: x.to("cuda"), recurse=False)
    return network


def averaged(network):
    average = on_cuda(WeightAverage(network))
    return on_cuda(network), average


def judged(network):
    optimizer = torch.optim.SGD(on_cuda(network).parameters(), lr=0.1)
    return {"discriminator": network, "discriminator_optimizer": optimizer}


def of_hvae(**settings):
    tiny = {"channels": (8, 16), "num_res_blocks": 1, "attention_heads": 1, "attention_head_dim": 8}
    network, average = averaged(HVAE(2, (24, 24), **tiny, num_leapfrog_steps=1))
    items, features = masked(3, 2, 24, 24), on_cuda(FeatureReconstructionLoss(SegmentationFeatures(1, 1)))
    judge = judged(patch_discriminator(2, (24, 24), channels=8))
    more = {"feature_loss": features, "discriminator_start": 0, "adaptive_weight": True, **judge, **settings}
    update = hvae.HVAEUpdate(1, torch.Generator(), average, 0.1, **more)

    def samples(x):
        network.fit_latent_density(items)
        return network(noise(2, *network.latent_shape).to("cuda")), network.reconstruct(x)

    return Family(network, update, {"image": items}, hvae.HVAEEvaluation(0, **settings), items[:1], samples)


def of_lsgan(**settings):
    network, average = averaged(Generator(2, (16, 16), (16, 8), latent_size=4))
    judge, items = judged(Discriminator(2, (16, 16), (8, 8))), masked(5, 2, 16, 16)
    update = lsgan.LSGANUpdate(generator=torch.Generator(), average=average, shift=0.25, **judge, **settings)
    evaluation = lsgan.LSGANEvaluation(SimpleNamespace(training=[{"image": x} for x in items]), judge["discriminator"])
    return Family(network, update, {"image": items}, evaluation, items[:1], lambda x: [network(noise(2, 4).to("cuda"))])


def latent_diffusion(size):
    levels = {"channels": [8, 8], "num_res_blocks": 1, "latent_channels": 2, "attention_levels": [False, True]}
    denoiser = {"denoiser_channels": [8, 8], "denoiser_res_blocks": 1, "denoiser_attention": [False, True]}
    times = {"num_train_timesteps": 4, "num_inference_steps": 2, "prediction_type": "v_prediction"}
    widths = {"head_channels": 4, "norm_groups": 4, "num_conditions": 9, "slice_wise": len(size) == 3}
    return LatentDiffusion(2, size, **levels, **denoiser, **times, **widths)


def of_autoencoder(size, **settings):
    network, average = averaged(latent_diffusion(size).autoencoder)
    items, judge = masked(2, 2, *size), judged(patch_discriminator(2, size[:2], channels=8))
    learnt = autoencoder.autoencoder_items([{"image": x} for x in items], slice_wise=len(size) == 3)
    batch = {name: torch.stack([item[name] for item in learnt]) for name in learnt[0]}
    update = autoencoder.AutoencoderUpdate(1, torch.Generator(), average, **judge, **settings)
    evaluation = autoencoder.AutoencoderEvaluation(1, 0)
    return Family(network, update, batch, evaluation, items[:1], lambda x: [network.reconstruct(x)])


def of_diffusion(size, **settings):
    network = latent_diffusion(size)
    average = on_cuda(WeightAverage(network.denoiser))
    items, conditions = masked(3, 2, *size), masked(3, 9)
    conditions[0] = float("nan")
    data = SimpleNamespace(training=items, training_tensor=lambda: items)
    latents = diffusion.LatentSet(data, on_cuda(network), SimpleNamespace(training_conditions=lambda: conditions))
    latents(None)
    batch = {name: torch.stack([latents[i][name] for i in range(len(items))]) for name in latents[0]}
    update = diffusion.DiffusionUpdate(torch.Generator(), average, **settings)

    def samples(_):
        start, asked = noise(1, *network.latent_shape).to("cuda"), conditions[1:2].to("cuda")
        yield network.sample(start, asked, num_steps=2, guidance_scale=2.0)
        yield network.sample(start, scheduler="dpm", num_steps=2)
        yield network.sample(start, scheduler="ddpm", num_steps=4, noises=lambda step: torch.zeros_like(start))

    return Family(network, update, batch, diffusion.DiffusionEvaluation(0), items[:1], samples)


def of_flow(**settings):
    network, average = averaged(LesionFlow(4, 2, (16, 16), [8, 8], 1, [False, True], 4, 4, num_steps=2))
    items, steps = masked(3, 6, 16, 16), (1.0, 1.0)
    update = flow.FlowUpdate(steps, torch.Generator(), average, **settings)

    def samples(x):
        return network.paint(x[:, :2], x[:, :2], x[:, 2:4], x[:, 4:5]), network(torch.cat([x, x[:, :1]], 1))

    return Family(network, update, {"image": items}, flow.FlowEvaluation(steps), items[:1], samples)


def of_segmentation(**settings):
    network = on_cuda(DynUNet(2, 1, 1, [3] * 3, [1, 2, 2], [2, 2], [8] * 3, norm_name=("instance", {"affine": True})))
    update, x = segmentation.SegmentationUpdate(**settings), masked(2, 2, 16, 16)
    update.prepared = True  # the fake mode cannot lay weights out anew
    batch = {"image": x[:, :1], "label": x[:, 1:], "synthetic": x[:, 0, 0, 0] > 0, "transplanted": x[:, 0, 0, 0] > 0}
    predictor = segmentation.Predictor(network, 1, lambda image: 2 * image)
    return Family(network, update, batch, None, x, lambda x: [predictor.predict(x)])  # MONAI evaluates


FAMILIES = {
    "hvae": of_hvae, "lsgan": of_lsgan, "lesion_flow": of_flow, "segmentation": of_segmentation,
    "ldm_autoencoder": partial(of_autoencoder, (24, 24)), "sbldm_autoencoder": partial(of_autoencoder, (24, 24, 2)),
    "ldm": partial(of_diffusion, (16, 16)), "sbldm": partial(of_diffusion, (8, 8, 4)),
}  # fmt: skip
of_each = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def step(family, monkeypatch):
    """The named terms of a step, as they are before they become floats."""
    monkeypatch.setattr(f"{type(family.update).__module__}.mean_terms", dict)
    engine = SimpleNamespace(
        network=family.network, optimizer=torch.optim.SGD(family.network.parameters(), lr=0.1), non_blocking=False,
        state=SimpleNamespace(iteration=1, device=torch.device("cuda")), prepare_batch=default_prepare_batch,
        inferer=SimpleInferer(), loss_function=DiceFocalLoss(sigmoid=True, batch=True),
    )  # fmt: skip
    return family.update(engine, family.batch)


def refused():
    return pytest.raises(RuntimeError, match="same device|different devices|the CPU and CUDA")


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@of_each
def test_all_terms_of_a_step_are_where_the_network_is(cuda, monkeypatch, family, autocast):
    terms = step(family(autocast=autocast, device="cuda"), monkeypatch)
    assert "loss" in terms and {value.device.type for value in terms.values()} == {"cuda"}
    assert (torch.bfloat16 in cuda.dtypes) == (autocast is not None)


@torch.no_grad()
@of_each
def test_evaluations_and_samples_are_where_the_network_is(cuda, family):
    made = family()
    x = made.item.to("cuda")
    found = list(made.samples(x))
    if made.evaluation is not None:
        made.evaluation.start(made.network, x.device)
        found += made.evaluation.item(made.network, x, torch.Generator()).values()
    assert {value.device.type for value in found} == {"cuda"}


@of_each
def test_a_weight_that_stayed_behind_is_found(cuda, monkeypatch, family):
    made = family()
    *_, (part, name) = ((m, n) for m in made.network.modules() for n, p in m._parameters.items() if p is not None)
    part._parameters[name] = torch.nn.Parameter(torch.ones(part._parameters[name].shape))
    with refused():
        step(made, monkeypatch)


@pytest.mark.parametrize("place", ["cpu", "cuda"])  # left there, or drawn there by the CPU's generator
def test_noise_in_the_wrong_place_is_found(cuda, monkeypatch, place):
    def wrong(like, generator):
        return torch.randn(like.shape, generator=generator, device=place)

    monkeypatch.setattr("scripts.losses.hvae._normal_like", wrong)
    made = of_hvae()
    with refused():
        step(made, monkeypatch)
