"""The task of this app: a lesion painted in at a click, or healthy tissue over what lies there."""

import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.runtime.errors import InputError  # noqa: E402 - the bundle's own code
from scripts.sampling.insertion import insert_lesion, write_insertion  # noqa: E402 - the bundle's own code


class Paint(InferTask):
    """Insertion or removal at the first foreground click, a voxel index; `volume` is in mm3."""

    def __init__(self, mode, models, datastore):
        super().__init__(
            type=InferType.DEEPGROW,
            labels={"lesion": 1},
            dimension=3,
            description=f"lesion_flow: {mode} a lesion at a click",
            config={"volume": 5000.0, "seed": 0},
        )
        self.mode, self.models, self.datastore = mode, models, datastore

    def is_valid(self):
        """Whether the painter's weights are there."""
        return (self.models / "model.pt").is_file()

    def __call__(self, request):
        """Paint; the label map's path, and what was done."""
        if not request.get("foreground"):
            raise InputError("no click", "a voxel of the image", "click where the lesion is to be")
        image, click = Path(request["image"]), [round(index) for index in request["foreground"][0]]
        settings = {name: type(default)(request.get(name, default)) for name, default in self.config().items()}
        done = insert_lesion([image], self.models, centre=click, remove=self.mode == "remove", **settings)
        case, place = image.name.removesuffix(".nii.gz").removesuffix(".nii"), "_".join(map(str, click))
        name = f"{case}_synthetic_{self.mode}_{place}_{settings['seed']}"
        about = {"synthetic": self.mode, "of": image.name, "click": click, **settings}
        with tempfile.TemporaryDirectory() as folder:
            painted = Path(folder, f"{name}.nii.gz")
            write_insertion(done, [painted], Path(folder, "mask.nii.gz"))
            self.datastore().add_image(name, str(painted), about)
        region = done.hole if self.mode == "remove" else done.label > 0
        with tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False) as label:  # the server removes it
            nib.save(nib.Nifti1Image(region.astype(np.uint8), done.volume.affine), label.name)
        return label.name, {"image": name, **about}
