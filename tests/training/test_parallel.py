"""Several processes make the step of one, also with losses that are no means over the items of a batch."""

from ..processes import python

PROGRAM = """
from types import SimpleNamespace

import ignite.distributed as idist
import torch

from scripts.losses.autoencoder import autoencoder_objective
from scripts.training.flow import velocity_loss
from scripts.training.parallel import average_gradients, join_ranks, leave_ranks, mean_terms

generator = torch.Generator().manual_seed(0)
x = torch.rand(4, 2, 6, 6, generator=generator)
x[:, 1] = torch.tensor([0.0, 0.9, 0.0, 0.3])[:, None, None] > torch.rand(6, 6, generator=generator)  # in every second
network = torch.nn.Conv2d(2, 2, 3, padding=1)


def autoencoder(x, shared):
    like = torch.ones(len(x), 1, 2, 2)
    return autoencoder_objective(network(x), x, 0 * like, like, 1, shared=shared).loss


def flow(x, shared):
    painter = SimpleNamespace(noised=lambda image, *_: image, velocity=lambda x, *_: network(x))
    return velocity_loss(painter, x, 0 * x, None, None, x[:, 1:], shared)


def step(loss, x, shared):
    network.zero_grad()
    value = loss(x, shared)
    value.backward()
    if shared:
        average_gradients(network)
    terms = mean_terms({"loss": value})
    return [terms["loss"], *torch.cat([p.grad.flatten() for p in network.parameters()]).tolist()]


torch.manual_seed(0)
network.reset_parameters()
join_ranks()
assert idist.get_world_size() == 2
for loss in (autoencoder, flow):
    whole, parts = step(loss, x, False), step(loss, x[idist.get_rank() :: 2], True)
    torch.testing.assert_close(torch.tensor(parts), torch.tensor(whole))
leave_ranks()
"""


def test_two_processes_make_the_step_of_one():
    done = python("-c", PROGRAM, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
