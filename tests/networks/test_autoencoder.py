"""The autoencoders of latent diffusion: slices know their place, and volumes cost no more memory than their chunks."""

import pytest
import torch

from scripts.networks.autoencoder import JointAutoencoder, SliceAutoencoder, slice_positions
from scripts.runtime.errors import InputError

TINY = {"channels": [8, 8], "num_res_blocks": 1, "latent_channels": 2, "attention_levels": [False, True],
        "norm_groups": 4}  # fmt: skip


def slice_wise(depth=6, **settings):
    torch.manual_seed(0)
    return SliceAutoencoder(2, [8, 8, depth], **{**TINY, "position_channels": 3, **settings}).eval()


@pytest.mark.parametrize("size", [[16, 24], [8, 16, 12]])
def test_whole_items(size):
    torch.manual_seed(0)
    network = JointAutoencoder(3, size, **TINY)
    x = torch.rand(2, 3, *size)
    mean, std = network.encode(x)
    assert mean.shape == std.shape == (2, *network.code_shape) == (2, 2, *(side // 2 for side in size))
    assert (std > 0).all()
    assert network.decode(mean).shape == x.shape
    torch.testing.assert_close(network.reconstruct(x), torch.sigmoid(network.decode(mean)))


def test_volumes_are_their_slices():
    """The latent of a volume is the stack of the latents of its slices, each at its place, and back."""
    network = slice_wise(chunk_size=4)
    x = torch.rand(2, 2, 8, 8, 6)
    mean, std = network.encode(x)
    assert mean.shape == (2, *network.code_shape) == (2, 2, 4, 4, 6)
    logits = network.decode(mean)
    assert logits.shape == x.shape
    for index, position in enumerate(slice_positions(6)):
        here = position.expand(2)
        torch.testing.assert_close((mean[..., index], std[..., index]), network.encode_slices(x[..., index], here))
        torch.testing.assert_close(logits[..., index], network.decode_slices(mean[..., index], here))


@pytest.mark.parametrize("chunk_size", [1, 4, 5])
def test_chunks_change_nothing(chunk_size):
    x = torch.rand(2, 2, 8, 8, 6)
    chunked, whole = slice_wise(chunk_size=chunk_size), slice_wise(chunk_size=100)
    torch.testing.assert_close(chunked.encode(x), whole.encode(x))
    torch.testing.assert_close(chunked.decode(x[:, :, :4, :4]), whole.decode(x[:, :, :4, :4]))


def test_activations_do_not_grow_with_the_depth():
    """The largest map that any layer makes: the chunk counts, not the depth."""

    def largest(depth):
        network, sizes = slice_wise(depth, chunk_size=4), []
        for module in network.coder.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda module, given, made: sizes.append(made.numel()))
        with torch.no_grad():
            network.reconstruct(torch.rand(1, 2, 8, 8, depth))
        return max(sizes)

    assert largest(32) == largest(16) == largest(4) > largest(2)


def test_position_matters_to_encoder_and_decoder():
    network = slice_wise()
    x = torch.rand(1, 2, 8, 8)
    first, last = torch.zeros(1), torch.ones(1)
    means = [network.encode_slices(x, position)[0] for position in (first, last)]
    assert (means[0] - means[1]).abs().max() > 1e-3
    decoded = [network.decode_slices(means[0], position) for position in (first, last)]
    assert (decoded[0] - decoded[1]).abs().max() > 1e-3
    for loss in (network.encode_slices(x, first)[0].sum(), network.decode_slices(means[0].detach(), first).sum()):
        network.zero_grad()
        loss.backward()
        assert network.position_embedding[0].weight.grad.abs().max() > 0


def test_neighbours_have_different_embeddings():
    network = slice_wise()
    maps = torch.cat([network._with_position(torch.zeros(1, 0, 1, 1), p[None]) for p in slice_positions(96)]).flatten(1)
    distances = torch.cdist(maps, maps) + 100 * torch.eye(96)
    assert distances.min() > 1e-3


def test_samples_of_a_batch_do_not_mix():
    network = slice_wise()
    z = torch.randn(2, *network.code_shape)
    torch.testing.assert_close(network.decode(z)[1:], network.decode(z[1:]))


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"spatial_size": [9, 8, 4]}, "multiples of 2"),
        ({"spatial_size": [8, 8]}, "depth"),
        ({"channels": [8, 10]}, "norm_groups"),
        ({"attention_levels": [False]}, "one flag for each level"),
        ({"chunk_size": 0}, "chunk_size 0"),
    ],
)
def test_settings_out_of_range(setting, words):
    with pytest.raises(InputError, match=words):
        SliceAutoencoder(**{"num_channels": 2, "spatial_size": [8, 8, 4], **TINY, **setting})
