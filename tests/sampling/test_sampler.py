"""A sample is a function of (generator, seed, number): not of what is made beside it, nor of the machine's threads."""

import numpy as np
import pytest
import torch

from scripts.networks.hvae import HVAE
from scripts.runtime.errors import InputError
from scripts.sampling.latent import LatentSampler
from scripts.sampling.sampler import Sampler

from ..pool.toy_generator import make_generator, open_generator


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    make_generator(folder, volumes="3d_fullres")
    return folder


def same(a: dict | None, b: dict | None) -> bool:
    if a is None or b is None:
        return a is b
    return (
        np.array_equal(a["image"], b["image"]) and np.array_equal(a["label"], b["label"]) and a["record"] == b["record"]
    )


@pytest.mark.parametrize("size", [1, 3, 4])
def test_candidates_do_not_depend_on_the_ranges_they_are_drawn_in(generator, size):
    sampler = open_generator(generator, samples_per_pass=size, min_foreground=40)
    whole = sampler.draw(range(10), 5)
    assert len(whole) == 10 and any(item is None for item in whole) and not all(item is None for item in whole)
    for candidates in (range(0, 1), range(3, 7), range(9, 10), range(2, 10), range(4, 4)):
        part = sampler.draw(candidates, 5)
        assert len(part) == len(candidates)
        assert all(same(item, whole[i]) for item, i in zip(part, candidates, strict=True))


def test_passes_are_whole_and_aligned(generator, monkeypatch):
    sampler = open_generator(generator, samples_per_pass=4)
    passes = []

    def record(candidates, seed, condition):
        passes.append(candidates)
        return LatentSampler._generate(sampler, candidates, seed, condition)

    monkeypatch.setattr(sampler, "_generate", record)
    sampler.draw(range(6, 9), 0)
    assert passes == [range(4, 8), range(8, 12)]
    assert sampler.next_candidates(6, 1) == range(6, 8) and sampler.next_candidates(8, 5) == range(8, 16)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_batches_hold_what_was_drawn(generator, batch_size):
    sampler = open_generator(generator, samples_per_pass=3, min_foreground=40)
    kept = [item for item in sampler.draw(range(40), 2) if item is not None][:7]
    batches = list(sampler(7, seed=2, batch_size=batch_size))
    assert np.array_equal(np.concatenate([b["image"] for b in batches]), np.stack([k["image"] for k in kept]))
    assert np.array_equal(np.concatenate([b["label"] for b in batches]), np.stack([k["label"] for k in kept]))
    assert [record for b in batches for record in b["record"]] == [k["record"] for k in kept]
    later = next(sampler(1, seed=2, start=kept[3]["record"]["seed"]))
    assert np.array_equal(later["label"][0], kept[3]["label"])


def test_threads_of_the_machine_do_not_change_the_samples(tmp_path):
    """Sums are rounded in another order with another number of threads, and torchrun sets it to one."""
    folder = tmp_path / "g"
    arguments = make_generator(folder)
    torch.manual_seed(0)
    network = HVAE(3, (64, 64), channels=(16, 32, 64, 128), num_res_blocks=1, latent_channels=8, attention_heads=4)
    sampler = LatentSampler(**arguments)
    sampler.network = network.eval()
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            drawn.append(sampler._generate(range(1), 0, None)[0])
            drawn.append(sampler.draw(range(2), 0)[1])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(drawn[0], drawn[2])  # else this network shows nothing
    assert same(drawn[1], drawn[3]) and same(drawn[1], drawn[5])


def test_settings_name_all_that_decides_the_samples(generator):
    sampler = open_generator(generator, samples_per_pass=2, autocast="bfloat16", threads=2, min_foreground=0)
    assert sampler.settings == {
        "min_foreground": 0, "samples_per_pass": 2, "autocast": "bfloat16", "compile": False, "threads": 2,
        "device": "cpu",
    }  # fmt: skip
    coarse, fine = (s.draw(range(1), 0)[0]["image"] for s in (sampler, open_generator(generator, min_foreground=0)))
    assert not np.array_equal(coarse, fine)
    assert np.corrcoef(coarse.ravel(), fine.ravel())[0, 1] > 0.99


def test_family_decides_what_is_accepted(generator):
    """A sweep, for one, keeps every candidate."""

    class Keeping(LatentSampler):
        def accepts(self, label, condition):
            return condition == {"keep": True} or super().accepts(label, condition)

    sampler = open_generator(generator, min_foreground=40)
    keeping = Keeping(sampler.network, generator / "model.pt", generator / "provenance.json", min_foreground=40)
    assert None in keeping.draw(range(10), 5) and None not in keeping.draw(range(10), 5, {"keep": True})


def test_compiled_network_is_the_one_that_runs(generator, monkeypatch):
    called = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: called.append(self))
    sampler = open_generator(generator, compile=True)
    assert called == [sampler.network] and sampler.settings["compile"] is True


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"samples_per_pass": 0}, "samples_per_pass 0"),
        ({"threads": 0}, "threads 0"),
        ({"compile": "false"}, "compile 'false'"),
        ({"autocast": "float16"}, "autocast 'float16'"),
    ],
)
def test_settings_out_of_range(generator, wrong, words):
    with pytest.raises(InputError, match=words):
        open_generator(generator, **wrong)


def test_generator_of_empty_masks_is_not_sampled_on_and_on(generator):
    sampler = open_generator(generator, min_foreground=10**6, samples_per_pass=8)
    with pytest.raises(InputError, match="0 of them with 1000000 voxels"):
        next(sampler(1, seed=0, batch_size=100))
    assert isinstance(sampler, Sampler)
