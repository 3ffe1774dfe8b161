"""Precision, recall, density and coverage against loops written here."""

import numpy as np
import pytest

from scripts.metrics import prdc as prdc_module
from scripts.metrics.prdc import prdc
from scripts.runtime.errors import InputError


def plain(a, b, k=3):
    found = prdc(a, b, np.ones((1, len(a))), np.ones((1, len(b))), k)
    return {name: float(values[0]) for name, values in found.items()}


def by_loops(a, b, k, wa=None, wb=None):
    """Naeem et al. (2020), section 2 and 3, word for word; an item drawn w times is w neighbours."""
    wa = np.ones(len(a), int) if wa is None else wa
    wb = np.ones(len(b), int) if wb is None else wb

    def radius(x, w, i):
        others = sorted((float(np.linalg.norm(x[i] - x[j])), j) for j in range(len(x)) if j != i)
        distances = [distance for distance, j in others for _ in range(w[j])]
        return distances[k - 1]

    used_a, used_b = [i for i in range(len(a)) if wa[i]], [i for i in range(len(b)) if wb[i]]
    radius_a, radius_b = {i: radius(a, wa, i) for i in used_a}, {i: radius(b, wb, i) for i in used_b}
    precision = sum(wa[i] * any(np.linalg.norm(a[i] - b[j]) < radius_b[j] for j in used_b) for i in used_a)
    recall = sum(wb[j] * any(np.linalg.norm(a[i] - b[j]) < radius_a[i] for i in used_a) for j in used_b)
    density = sum(
        wa[i] * sum(wb[j] * (np.linalg.norm(a[i] - b[j]) < radius_b[j]) for j in used_b) for i in used_a
    )  # fmt: skip
    coverage = sum(wb[j] * any(np.linalg.norm(a[i] - b[j]) < radius_b[j] for i in used_a) for j in used_b)
    return {
        "precision": precision / wa.sum(),
        "recall": recall / wb.sum(),
        "density": density / (k * wa.sum()),
        "coverage": coverage / wb.sum(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_figures_are_those_of_the_definitions(k):
    rng = np.random.default_rng(k)
    a, b = 1.5 + rng.normal(size=(25, 2)), rng.normal(size=(35, 2))
    found = plain(a, b, k)
    assert found == pytest.approx(by_loops(a, b, k))
    assert all(0 < value < 1 for value in found.values())


def test_weights_count_as_neighbours_and_as_items():
    rng = np.random.default_rng(0)
    a, b = 0.5 + rng.normal(size=(20, 2)), rng.normal(size=(18, 2))
    wa, wb = rng.integers(0, 4, (3, 20)), rng.integers(0, 4, (3, 18))
    found = prdc(a, b, wa.astype(float), wb.astype(float), 3)
    for draw in range(3):
        expected = by_loops(a, b, 3, wa[draw], wb[draw])
        assert {name: values[draw] for name, values in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize(("room", "kept"), [(1, 3), (60, 4), (777, 9), (10**6, 6)])
def test_parts_and_few_kept_neighbours_give_the_same(monkeypatch, room, kept):
    rng = np.random.default_rng(1)
    a, b = 0.5 + rng.normal(size=(23, 3)), rng.normal(size=(17, 3))
    a[:4] = b[:4]  # copies, whose distances are equal to the last bit
    wa, wb = rng.multinomial(23, np.full(23, 1 / 23), 6), rng.multinomial(17, np.full(17, 1 / 17), 6)
    wa[0], wb[1] = 1, np.eye(17, dtype=int)[5] * 17  # a draw of one item alone reaches nobody
    whole = prdc(a, b, wa, wb, 3)
    monkeypatch.setattr(prdc_module, "ROOM", room)
    monkeypatch.setattr(prdc_module, "KEPT", kept)
    told = []
    found = prdc(a, b, wa.astype(np.int16), wb.astype(np.int16), 3, told.append)
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12)
    assert sum(told) == 2 * 23 + 17
    for draw in (0, 2, 3, 4, 5):
        expected = by_loops(a, b, 3, wa[draw], wb[draw])
        assert {name: values[draw] for name, values in found.items()} == pytest.approx(expected)


def test_equal_gaussians_and_a_set_against_itself():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    same = plain(a, b, 5)
    # Naeem et al. (2020): for equal distributions E[density] = 1, and E[coverage] comes near 1 - 2^-k.
    assert same["density"] == pytest.approx(1, abs=0.1)
    assert same["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    assert same["precision"] > 0.95 and same["recall"] > 0.95
    itself = plain(a, a, 5)
    assert (itself["precision"], itself["recall"], itself["coverage"]) == (1, 1, 1)


def test_a_narrow_set_is_precise_and_recalls_little_and_a_distant_one_has_nothing():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 2))
    narrow = plain(0.2 * rng.normal(size=(200, 2)), real)
    assert narrow["precision"] > 0.95 and narrow["recall"] < 0.3 and narrow["coverage"] < 0.5
    assert set(plain(real + 100, real).values()) == {0}


def test_noise_lowers_precision_density_and_coverage():
    rng = np.random.default_rng(0)
    real, base, noise = rng.normal(size=(150, 3)), rng.normal(size=(150, 3)), rng.normal(size=(150, 3))
    found = [plain(base + level * noise, real) for level in (0, 1, 2, 4)]
    for name in ("precision", "density", "coverage"):
        assert np.all(np.diff([values[name] for values in found]) < 0)


def test_order_does_not_matter():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 4)), rng.normal(size=(20, 4))
    assert plain(a[rng.permutation(30)], b[rng.permutation(20)]) == pytest.approx(plain(a, b))


def test_too_few_items_are_refused():
    for n, k in ((3, 3), (10, 0)):
        with pytest.raises(InputError, match="neighbours"):
            plain(np.zeros((n, 2)), np.zeros((9, 2)), k)
