"""The network sees a case in training as in prediction: mean 0 and standard deviation 1, whatever its units."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged

from scripts.data.cases import open_cases
from scripts.data.training_set import load_training_set
from scripts.runtime.errors import InputError
from scripts.segmentation.model_space import ImageReader, ModelSpace, ToGridd
from scripts.segmentation.normalisation import Normalise, ZScore, normalisation_of

from ..data.toy_nnunet import write_dataset


@pytest.mark.parametrize("kind", ["raw", "nnunet", "masked"])
def test_training_and_prediction_see_the_same(kind, tmp_path):
    raw, pre = write_dataset(tmp_path, channels=2, mask=kind == "masked")
    data = load_training_set(open_cases(raw if kind == "raw" else pre), (24, 24), background_share=None)
    normalise = Normalise(data, "z-score")
    recorded = ZScore.from_record(json.loads(json.dumps(normalise.record)))
    assert recorded == normalise.common and recorded.per_case == (kind == "raw")
    chain = Compose([
        LoadImaged("image", reader=ImageReader(), ensure_channel_first=True),
        ToGridd("image", ModelSpace.of(data, recorded)),
    ])  # fmt: skip
    for case in data.cases.fold.train:
        grid = chain({"image": [str(raw / f"imagesTr/{case}_{c:04d}.nii.gz") for c in range(2)]})["image"]
        seen = [item for item in data.training if item["case"] == case]
        for item in seen:
            ours = normalise({**item, "image": item["image"][:2]})["image"]
            assert torch.allclose(grid[..., item["slice"]].as_tensor(), ours, atol=1e-4)


@pytest.mark.parametrize("kind", ["raw", "nnunet", "masked"])
def test_cases_have_mean_zero_and_deviation_one(kind, tmp_path):
    raw, pre = write_dataset(tmp_path, channels=2, mask=kind == "masked")
    data = load_training_set(open_cases(raw if kind == "raw" else pre), (24, 24), background_share=None)
    normalise = Normalise(data, "z-score")
    seen, tissue = [], []
    for case in data.cases.training():
        image = normalise.map_of(case.id)(torch.from_numpy(data.scaling.apply(case)))
        seen.append(image[:, torch.from_numpy(case.inside)].double())
        tissue.append(image[:, ~torch.from_numpy(case.inside)])
        if kind == "raw":
            assert seen[-1].mean(1).abs().max() < 1e-4 and (seen[-1].std(1) - 1).abs().max() < 1e-2
    together = torch.cat(seen, 1)
    assert together.mean(1).abs().max() < 0.05 and (together.std(1) - 1).abs().max() < 0.05
    assert all((outside == 0).all() for outside in tissue)


@pytest.mark.slow
def test_units_do_not_matter_in_a_raw_space(tmp_path):
    """Another scanner's: three times as bright, with an offset."""
    raw, _ = write_dataset(tmp_path)
    first = sorted((raw / "imagesTr").iterdir())[0]
    before = load_training_set(open_cases(raw, "all"), (24, 24), background_share=None)
    items = [Normalise(before, "z-score")({**i, "image": i["image"][:1]})["image"] for i in before.training]
    image = nib.load(first)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 3 + 500, image.affine), first)
    after = load_training_set(open_cases(raw, "all"), (24, 24), background_share=None)
    again = [Normalise(after, "z-score")({**i, "image": i["image"][:1]})["image"] for i in after.training]
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(items, again, strict=True))


def test_words():
    data = SimpleNamespace()
    assert normalisation_of("online") == "z-score" and normalisation_of("x5") == normalisation_of("none") == "min-max"
    kept = {"image": torch.rand(1, 3, 3), "case": "a"}
    assert torch.equal(Normalise(data, "min-max")(kept)["image"], kept["image"])
    assert Normalise(data, "min-max").record is None is ZScore.from_record(None)
    with pytest.raises(InputError, match="z-scores"):
        Normalise(data, "z-scores")
