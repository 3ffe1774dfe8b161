"""MONAI Deploy: an application around its bundle operator, and the TorchScript that MONAI exports of the bundle."""

import importlib.util
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from .conftest import run, write_site

if importlib.util.find_spec("monai.deploy") is None:
    pytest.skip("MONAI Deploy is not installed: pip install monai-deploy-app-sdk", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*_target_.*:UserWarning"),  # of every bundle: it can run code
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI calls itself so
    pytest.mark.filterwarnings("ignore:.*nvImageCodec.*"),  # of MONAI's readers, once there is pydicom
]


def exported(packed: Path, folder: Path) -> Path:
    """A copy of the packed bundle with its TorchScript in place of the weights, by the zoo's own call."""
    bundle = shutil.copytree(packed, folder / "segmentation")
    run(
        "-m", "monai.bundle", "ckpt_export", "network_def", f"--filepath={bundle}/models/model.ts",
        f"--ckpt_file={bundle}/models/model.pt", f"--meta_file={bundle}/configs/metadata.json",
        f"--config_file={bundle}/configs/inference.json", f"--bundle_root={bundle}", cwd=bundle,
    )  # fmt: skip
    return bundle


def predicted(bundle: Path, images: Path) -> np.ndarray:
    """The bundle's own label map (x, y, z) of an image; after that only the TorchScript is left of the weights."""
    configs = [f"--config_file={bundle}/configs/inference.json", f"--bundle_root={bundle}"]
    run("-m", "monai.bundle", "run", *configs, f"--dataset_dir={images}", cwd=bundle.parent)
    (bundle / "models/model.pt").unlink()
    return np.asarray(nib.load(bundle / "predictions/new.nii.gz").dataobj)


def test_bundle_operator_in_an_application(packed, tmp_path):
    """The application's label map is, to the voxel, the bundle's own prediction of the same file."""
    bundle = exported(packed, tmp_path)
    image = tmp_path / "images/new_0000.nii.gz"
    image.parent.mkdir()
    shutil.copy(write_site(tmp_path / "second", seed=2) / "imagesTs/flair_test_000_0000.nii.gz", image)
    ours = predicted(bundle, image.parent)
    said = run(Path(__file__).with_name("deploy_app.py"), "models/model.ts", image, tmp_path / "label.npy", cwd=bundle,
               PYTHONPATH=str(bundle))  # fmt: skip
    label = np.load(tmp_path / "label.npy")
    assert label.any() and np.array_equal(np.swapaxes(label, 0, 2), ours), said


def write_series(array: np.ndarray, spacing: tuple[float, float, float], folder: Path) -> None:
    """An MR series of axial slices, (x, y, z) in whole numbers, spacing in mm along these axes of LPS."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True)
    study, series, frame = (generate_uid(entropy_srcs=[name]) for name in ("study", "series", "frame"))
    for index in range(array.shape[2]):
        slice_ = pydicom.Dataset()
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, generate_uid(entropy_srcs=[f"slice {index}"])
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.Modality, slice_.PatientName, slice_.PatientID = "MR", "Phantom^One", "phantom"
        slice_.PatientBirthDate, slice_.PatientSex, slice_.StudyID, slice_.AccessionNumber = "", "", "1", ""
        slice_.StudyDate, slice_.StudyTime, slice_.SeriesNumber, slice_.InstanceNumber = (
            "20200101",
            "120000",
            1,
            index + 1,
        )
        slice_.ReferringPhysicianName, slice_.SeriesDescription, slice_.Manufacturer = "", "phantom", "none"
        slice_.ImageType, slice_.PositionReferenceIndicator = ["ORIGINAL", "PRIMARY", "AXIAL"], ""
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [0, 0, index * spacing[2]]
        slice_.PixelSpacing, slice_.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        slice_.Columns, slice_.Rows = array.shape[:2]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelData = np.ascontiguousarray(array[:, :, index].T.astype(np.uint16)).tobytes()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.save_as(folder / f"{index:03}.dcm", enforce_file_format=True)


def test_dicom_series_in_dicom_seg_out(packed, tmp_path):
    """The DICOM SEG holds, slice by slice, the bundle's own prediction of the same voxels in a NIfTI file."""
    import pydicom

    bundle = exported(packed, tmp_path)
    site = nib.load(write_site(tmp_path / "second", seed=2) / "imagesTs/flair_test_000_0000.nii.gz")
    array, spacing = np.asarray(site.dataobj).clip(0).round(), tuple(map(float, site.header.get_zooms()))
    write_series(array, spacing, tmp_path / "series")
    (tmp_path / "images").mkdir()
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1])  # of DICOM's LPS in NIfTI's RAS
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), tmp_path / "images/new_0000.nii.gz")
    ours = predicted(bundle, tmp_path / "images")

    said = run("docs/dicom_app.py", "models/model.ts", tmp_path / "series", tmp_path / "out", cwd=bundle,
               PYTHONPATH=str(bundle))  # fmt: skip
    (file,) = (tmp_path / "out").rglob("*.dcm")
    seg = pydicom.dcmread(file)
    assert seg.Modality == "SEG" and [segment.SegmentLabel for segment in seg.SegmentSequence] == ["tumor"]
    label = np.zeros_like(ours)
    frames = seg.pixel_array.reshape(-1, *array.shape[1::-1])
    for frame, facts in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        z = round(float(facts.PlanePositionSequence[0].ImagePositionPatient[2]) / spacing[2])
        label[:, :, z] = frame.T
    assert label.any() and np.array_equal(label, ours), said
