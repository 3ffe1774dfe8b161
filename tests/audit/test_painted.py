"""Pools of real anatomy: memorisation is judged on what was painted."""

import numpy as np
import pytest
import torch

from scripts.audit.items import load_audit_data
from scripts.audit.memorisation import find_copies
from scripts.audit.painted import painted_alone
from scripts.audit.thresholds import check_levels
from scripts.networks.features import train_segmentation_features
from scripts.pool.writing import write_pool

from .planted import PlantedSampler, load, write_heads


class PaintedSampler(PlantedSampler):
    """Real slices of one patient with the lesion of a slice, as it is or changed, and the box that it is in."""

    real_anatomy = True

    def _one(self, index):
        item = super()._one(index)
        places = np.argwhere(item["label"] > 0)
        low, high = places.min(axis=0) - 3, places.max(axis=0) + 4
        low, high = np.maximum(low, 0), np.minimum(high, item["label"].shape)
        item["record"]["hole"] = {"start": low.tolist(), "size": (high - low).tolist()}
        return item


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = write_heads(tmp_path_factory.mktemp("heads") / "Dataset903_Heads", 14, 2)
    return folder, load(folder, 0, (40, 36))


@pytest.mark.slow
def test_only_the_box_is_compared(heads, tmp_path):
    folder, data = heads
    lesions = [item["image"] for item in data.training if item["image"][1:].any()]
    rng = np.random.default_rng(0)
    pairs = []
    for index, (mine, other) in enumerate(zip(lesions[:16], lesions[-16:], strict=True)):
        joint = mine.clone()
        if index >= 8:  # the patient stays, and in the lesion is something new
            inside = joint[1:].any(0)
            noise = torch.from_numpy(rng.normal(0, 0.12, inside.shape)).float()
            joint[0] = torch.where(inside, (other[0].roll((7, 5), (0, 1)) / 2 + noise + 0.4).clamp(0, 1), joint[0])
        pairs.append(joint)
    pool = write_pool(PaintedSampler(data, pairs), tmp_path / "pool", len(pairs), progress=False)
    audit = load_audit_data(pool, folder, lambda items, title: items)
    alone = painted_alone(audit)
    assert alone.real.images.shape[2] < 40 and len(alone.real) == len(audit.real)
    assert float(alone.samples.images[0].sum()) < float(audit.samples.images[0].sum())
    images, masks = audit.real.images.float()[:32], audit.real.masks.float()[:32]
    extractor = train_segmentation_features(images, masks, steps=3, seed=0, device="cpu")
    whole, painted = (find_copies(x, extractor, check_levels(None), lambda items, title: items) for x in (audit, alone))
    assert (whole.closeness[8:] < 1).mean() > 0.6  # the patient is the same: what nobody may be blamed for
    assert (painted.closeness[:8] < 1).mean() > 0.8 and (painted.closeness[8:] < 1).mean() < 0.4
