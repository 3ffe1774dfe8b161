"""A MONAI Deploy application of three operators: an image in memory, the bundle's inference, the label map to a file.

A program of its own, as applications are: `python deploy_app.py MODEL.ts IMAGE OUTPUT.npy`.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch  # noqa: F401 - brings the CUDA runtime that Holoscan's library is linked to
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators import IOMapping, MonaiBundleInferenceOperator

model, image, output = (Path(word) for word in sys.argv[1:])


class Source(Operator):
    """Gives the image as MONAI Deploy's reader of a DICOM series does: array (z, y, x), and what DICOM says of it."""

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("image")

    def compute(self, op_input, op_output, context) -> None:
        file = nib.load(image)
        spacing = dict(zip(("row", "col", "depth"), map(float, file.header.get_zooms()), strict=True))
        facts = {f"{name}_pixel_spacing": value for name, value in spacing.items()}
        array = np.swapaxes(np.asarray(file.dataobj), 0, 2)
        op_output.emit(Image(array, metadata={**facts, "nifti_affine_transform": file.affine}), "image")


class Sink(Operator):
    """Keeps the label map (z, y, x)."""

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("pred")

    def compute(self, op_input, op_output, context) -> None:
        np.save(output, op_input.receive("pred").asnumpy())


class App(Application):
    """Source, inference, sink."""

    def compose(self) -> None:
        context = AppContext({"model": str(model), "workdir": str(output.parent)})
        infer = MonaiBundleInferenceOperator(
            self, app_context=context, bundle_path=model, name="infer",
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
        )  # fmt: skip
        self.add_flow(Source(self, CountCondition(self, 1), name="source"), infer, {("image", "image")})
        self.add_flow(infer, Sink(self, name="sink"), {("pred", "pred")})


App().run()
