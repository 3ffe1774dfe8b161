"""The HVAE objective as the papers write it, on the weights of a network: slow, to be checked by eye.

The test of the objective and the benchmark of the training step both load this one copy. It evaluates the
gradient of the potential at both ends of every leapfrog step (2K times), works on probabilities, standardises
the weights in every call, keeps the contiguous layout and leaves every derivative to autograd.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from scripts.networks.hvae import ResidualBlock, SelfAttention


def plain_conv(x, conv):
    w = conv.weight
    mean = w.mean(dim=(1, 2, 3), keepdim=True)
    norm = ((w - mean) ** 2).sum(dim=(1, 2, 3), keepdim=True)
    return F.conv2d(x, (w - mean) / torch.sqrt(norm + 1e-6), padding=1)


def plain_layers(layers, x):
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            x = plain_layers(layer, x)
        elif isinstance(layer, ResidualBlock):
            hidden = F.group_norm(plain_conv(x, layer.conv), layer.norm.num_groups, layer.norm.weight, layer.norm.bias)
            x = layer.skip(x) + F.silu(hidden)
        elif isinstance(layer, SelfAttention):
            batch, _, height, width = x.shape
            qkv = layer.to_qkv(layer.norm(x)).reshape(batch, 3, layer.num_heads, layer.head_dim, -1)
            scores = torch.einsum("bhci,bhcj->bhij", qkv[:, 0], qkv[:, 1]) / math.sqrt(layer.head_dim)
            mixed = torch.einsum("bhij,bhcj->bhci", scores.softmax(dim=-1), qkv[:, 2])
            x = x + layer.to_out(mixed.reshape(batch, -1, height, width))
        else:  # 1 x 1 and outermost convolutions, pooling, enlargement
            x = layer(x)
    return x


def plain_hvae_loss(network, x, generator):
    """Give the scalar -ELBO_H of eq. 8, averaged over the batch."""
    mean, log_var = plain_layers(network.encoder, x).chunk(2, dim=1)
    epsilon = torch.randn(mean.shape, generator=generator, dtype=x.dtype)
    z0 = z = mean + torch.exp(log_var / 2) * epsilon
    dimension = z[0].numel()
    num_steps, beta_zero = network.num_leapfrog_steps, network.beta_zero
    step = torch.exp(network.log_step_size)

    def log_joint(z):
        probabilities = torch.sigmoid(plain_layers(network.decoder, z))
        log_likelihood = -F.binary_cross_entropy(probabilities, x, reduction="sum")
        return log_likelihood - 0.5 * (z**2).sum() - 0.5 * math.log(2 * math.pi) * z.numel()

    def gradient(z):
        return torch.autograd.grad(-log_joint(z), z, create_graph=True)[0]

    std = torch.exp(log_var / 2)
    log_q = torch.distributions.Normal(mean, std).log_prob(z0).sum()
    if num_steps == 0:
        return (log_q - log_joint(z)) / len(x)

    normal = torch.distributions.Normal(torch.zeros((), dtype=x.dtype), 1.0)
    gamma = torch.randn(mean.shape, generator=generator, dtype=x.dtype)
    rho = gamma / math.sqrt(beta_zero)
    # The density of rho_0 ~ N(0, I / beta_0).
    log_q = log_q + normal.log_prob(gamma).sum() + len(x) * dimension / 2 * math.log(beta_zero)

    def root_beta(k):
        root = math.sqrt(beta_zero)
        return 1 / ((1 - 1 / root) * k**2 / num_steps**2 + 1 / root)

    for k in range(1, num_steps + 1):
        half = rho - step / 2 * gradient(z)
        z = z + step * half
        rho = half - step / 2 * gradient(z)
        rho = root_beta(k - 1) / root_beta(k) * rho
        # The map's determinant divides the density.
        log_q = log_q - len(x) * dimension * math.log(root_beta(k - 1) / root_beta(k))
    return (log_q - log_joint(z) - normal.log_prob(rho).sum()) / len(x)
