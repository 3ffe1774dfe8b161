"""A MONAI Deploy application: a DICOM series in, its segmentation as DICOM SEG out; operators of the App SDK alone.

In the bundle's folder, with that folder on PYTHONPATH and the network exported (`ckpt_export`, see README.md):

    python docs/dicom_app.py models/model.ts DICOM_FOLDER OUTPUT_FOLDER

Not for diagnosis.
"""

import json
import sys
from pathlib import Path

import torch  # noqa: F401 - brings the CUDA runtime that Holoscan's library is linked to
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType
from monai.deploy.operators import (
    DICOMDataLoaderOperator,
    DICOMSegmentationWriterOperator,
    DICOMSeriesSelectorOperator,
    DICOMSeriesToVolumeOperator,
    IOMapping,
    MonaiBundleInferenceOperator,
)
from monai.deploy.operators.dicom_seg_writer_operator import SegmentDescription
from pydicom.sr.codedict import codes


def segments(bundle):
    """What the label map of the bundle's weights holds, in the order of its integers 1, 2, ..."""
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    names = metadata["network_data_format"]["post_processed_outputs"]["pred"]["channel_def"]
    integers = sorted(int(key) for key in names if int(key))
    if integers != list(range(1, len(integers) + 1)):
        raise SystemExit(f"labels {names}: DICOM SEG wants the integers 1, 2, ... without gaps")
    return [
        SegmentDescription(
            segment_label=names[str(integer)][:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Mass,
            algorithm_name=str(metadata["bundle"]),
            algorithm_family=codes.DCM.ArtificialIntelligence,
            algorithm_version=metadata["version"],
        )
        for integer in integers
    ]


class App(Application):
    """Loader, selector, volume, inference, writer."""

    def compose(self):
        """Connect the operators."""
        context = AppContext({"model": str(model), "workdir": str(output)})
        loader = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=series, name="loader")
        selector = DICOMSeriesSelectorOperator(self, name="selector")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        infer = MonaiBundleInferenceOperator(
            self,
            app_context=context,
            bundle_path=model,
            name="infer",
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
        )
        writer = DICOMSegmentationWriterOperator(
            self, segment_descriptions=segments(Path.cwd()), output_folder=output, name="writer"
        )
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, volume, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(volume, infer, {("image", "image")})
        self.add_flow(selector, writer, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(infer, writer, {("pred", "seg_image")})


if __name__ == "__main__":
    model, series, output = (Path(word).absolute() for word in sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    App().run()
