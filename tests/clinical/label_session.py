"""What a reader does in MONAI Label with one bundle: ask for a label, train on the labels that are there, ask again.

Run as a program of its own, since MONAI Label unloads and reloads the module `scripts` of its process:
`python label_session.py BUNDLE STUDIES IMAGE OUTPUT`. Copies of the three label maps and of the records of the two
trainings go to OUTPUT.
"""

import shutil
import sys
from pathlib import Path

from monailabel.datastore.local import LocalDatastore
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask

bundle, studies, image, output = sys.argv[1:]
infer, train = BundleInferTask(bundle, {}), BundleTrainTask(bundle, {})
assert infer.is_valid() and train.is_valid()
print("labels", infer.labels)
datastore = LocalDatastore(studies, extensions=["*.nii.gz"], auto_reload=False)
for turn in range(3):
    if turn:
        train({"model": "segmentation", "device": "cpu", "max_epochs": 2, "val_split": 0.25}, datastore)
        shutil.copy(Path(bundle, "models/provenance.json"), Path(output, f"provenance{turn}.json"))
    path, _ = infer({"image": image, "device": "cpu", "result_extension": ".nii.gz"})
    shutil.move(path, Path(output, f"label{turn}.nii.gz"))
