"""Patches of a transplant show its lesion and are padded only where any patch there would be; others are stock's."""

from types import SimpleNamespace

import numpy as np
import pytest
from nnunet_plugin.transplant.cases import window_around
from nnunet_plugin.transplant.loader import Locations, TransplantLoader, loading_transplants
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

FINAL, INITIAL = (16, 24, 24), (22, 39, 39)


def loader(kind, has_ignore=False):
    labels = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=has_ignore)
    return kind(SimpleNamespace(identifiers=["a"]), 2, INITIAL, FINAL, labels, 0.33)


@pytest.mark.parametrize("shape", [(60, 90, 100), (20, 30, 26), (10, 20, 200)])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("force_fg, has_ignore", [(False, False), (True, False), (False, True)])
def test_patches_show_the_lesion(shape, where, force_fg, has_ignore):
    size = np.array(shape)
    centre = np.round(where * (size - 1)).astype(int)
    window = window_around(centre, FINAL, shape)
    organ = np.argwhere(np.ones((4, 4, 4))) * (size - 1) // 3  # of another label, all over the image
    rows = np.concatenate([np.zeros((len(organ), 1), int), organ], axis=1)
    places = {1: np.array([[0, *centre]]), 2: rows, (-1, 0, 1, 2): rows}
    np.random.seed(0)  # noqa: NPY002 (as nnU-Net draws)
    ours = loader(TransplantLoader, has_ignore)
    pad = np.maximum(np.array(INITIAL) - FINAL, np.array(INITIAL) - size)
    starts = []
    for _ in range(200):
        low, high = map(np.array, ours.get_bbox(shape, force_fg, Locations(places, window)))
        assert (high - low == INITIAL).all()
        seen = low + (np.array(INITIAL) - FINAL) // 2  # where the network's patch starts
        large = size >= FINAL
        assert ((seen <= centre) & (centre < seen + FINAL))[large].all()
        assert ((seen >= 0) & (seen + FINAL <= size))[large].all()  # no padding where the network looks
        assert (low >= -(pad + 1) // 2).all() and (high <= size + (pad + 1) // 2).all()  # where stock may go
        starts.append(low)
    roomy = shape == (60, 90, 100) and 0 < where < 1  # a lesion in the corner leaves no choice
    assert len(np.unique(starts, axis=0)) > 20 * roomy


@pytest.mark.parametrize("force_fg", [False, True])
def test_cases_without_a_window_are_those_of_stock(force_fg):
    places = {1: np.array([[0, 3, 4, 5], [0, 30, 40, 50]]), 2: []}
    boxes = []
    for kind in (nnUNetDataLoader, TransplantLoader):
        np.random.seed(1)  # noqa: NPY002
        one = loader(kind)
        boxes.append([one.get_bbox((60, 90, 100), force_fg, places) for _ in range(30)])
    assert boxes[0] == boxes[1]


def test_the_trainer_of_others_keeps_its_loader():
    with pytest.raises(KeyError), loading_transplants():
        assert stock.nnUNetDataLoader is TransplantLoader
        raise KeyError
    assert stock.nnUNetDataLoader is nnUNetDataLoader
