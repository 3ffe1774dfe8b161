"""An untrained painter of lesions, with the files that a training would leave."""

from pathlib import Path

import torch

from scripts.data.cases import open_cases
from scripts.data.lesion_crops import LesionCrops, load_lesion_crops
from scripts.data.provenance import build_provenance, write_provenance
from scripts.networks.lesion_flow import LesionFlow

from ..data.toy import body_case, write_preprocessed

NETWORK = {"channels": [8, 8], "attention_levels": [False, False], "norm_groups": 4}


def make_painter(folder: Path, volumes: bool = False, **changes) -> tuple[LesionFlow, dict, LesionCrops]:
    """Write a data set and a painter; returns it, what else the sampler is given, and the windows."""
    data_set = folder / "Dataset901_Toy"
    if not data_set.is_dir():
        write_preprocessed(data_set, cases=8, **{"case": body_case, **changes})
    cases = open_cases(data_set, configuration="3d_fullres" if volumes else "2d")
    data = load_lesion_crops(cases, [16, 24, 24] if volumes else [24, 24])
    arguments = {"num_channels": data.num_channels, "num_labels": data.num_channels - data.num_image_channels,
                 "spatial_size": [16, 24, 24] if volumes else [24, 24], **NETWORK}  # fmt: skip
    torch.manual_seed(0)
    network = LesionFlow(**arguments, num_steps=2)
    torch.nn.init.normal_(network.denoiser.unet.out[2].conv.weight, std=0.1)  # it starts at zero
    models = folder / ("models3d" if volumes else "models")
    models.mkdir()
    torch.save(network.state_dict(), models / "model.pt")
    training = {"windows": data.as_settings, "lesion_labels": None}
    record = build_provenance(data, {"name": "lesion_flow", "version": "0.1.0"}, 0, arguments, training)
    write_provenance(models / "provenance.json", record, models / "model.pt")
    given = {"checkpoint": models / "model.pt", "provenance": models / "provenance.json", "dataset_dir": data_set}
    return network, given, data
