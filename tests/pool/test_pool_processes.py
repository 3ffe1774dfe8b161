"""A pool is the same whatever the number of processes, and wherever one of them dies."""

import os
import subprocess
from pathlib import Path

import pytest

from ..processes import python
from .toy_generator import contents, make_generator

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    make_generator(folder, volumes="raw")
    return folder


def sample(ranks: int, generator: Path, *arguments, torchrun=False) -> subprocess.CompletedProcess:
    words = ["-m", "tests.pool.pool_worker", "sample", generator, *arguments]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    if ranks == 1:
        environment.pop("OMP_NUM_THREADS", None)  # torchrun sets it to 1, a single process takes every core
    if torchrun:
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *words]
    return python(*words, env=environment, ranks=1 if torchrun else ranks)


@pytest.fixture(scope="module")
def straight(generator, tmp_path_factory):
    """The pool that one process makes."""
    folder = tmp_path_factory.mktemp("straight") / "pool"
    done = sample(1, generator, folder, 2, 16)
    assert done.returncode == 0, done.stderr
    return contents(folder)


@pytest.mark.parametrize("ranks, batch_size", [(1, 1), (2, 1), (3, 4)])
def test_ranks_and_batch_size_do_not_change_the_pool(generator, straight, tmp_path, ranks, batch_size):
    done = sample(ranks, generator, tmp_path / "pool", 2, batch_size)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "pool") == straight


@pytest.mark.parametrize("failing_rank, step, ranks_after", [(1, 2, 1), (0, 12, 2)])
def test_rank_that_dies_ends_all_and_the_pool_can_be_finished(
    generator, straight, tmp_path, failing_rank, step, ranks_after
):
    died = sample(2, generator, tmp_path / "pool", 2, 2, failing_rank, step, "kill")
    assert died.returncode != 0 and not (tmp_path / "pool").exists()
    assert (tmp_path / "pool.partial").is_dir()
    done = sample(ranks_after, generator, tmp_path / "pool", 2, 2)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "pool") == straight
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool"]


@pytest.mark.parametrize(
    "failing_rank, step, how, words", [(1, 2, "input", "error: a broken disk"), (0, 12, "os", "OSError: no space")]
)
def test_failure_of_a_rank_ends_all_and_is_told_once(generator, tmp_path, failing_rank, step, how, words):
    failed = sample(2, generator, tmp_path / "pool", 2, 2, failing_rank, step, how, torchrun=how == "input")
    assert failed.returncode != 0 and not (tmp_path / "pool").exists()
    assert words in failed.stderr
    assert failed.stderr.count("error: ") <= 1  # its traceback may stand beside it


def test_killed_at_every_step(generator, tmp_path):
    for grow_from in (0, 3):
        (tmp_path / str(grow_from)).mkdir()
        words = ["-m", "tests.pool.pool_worker", "kill_everywhere", generator, tmp_path / str(grow_from), grow_from]
        done = python(*words)
        assert done.returncode == 0, done.stderr[-3000:]
        assert int(done.stdout.split("killed at ")[1].split()[0]) > 20
