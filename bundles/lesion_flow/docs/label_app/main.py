"""A MONAI Label app: at a click it paints a lesion into the opened volume, or healthy tissue over one.

    monailabel start_server --app BUNDLE/docs/label_app --studies STUDIES --conf bundle_root TRAINED

The viewer gets a label map of the lesion (or of what was painted over), and the painted volume enters the studies under
a name with `synthetic` in it, to be opened like any other. Not for diagnosis.
"""

from pathlib import Path

from monailabel.interfaces.app import MONAILabelApp
from paint import BUNDLE, Paint


class LesionApp(MONAILabelApp):
    """Both tasks on a datastore of NIfTI files; `bundle_root` is where a training left its models."""

    def __init__(self, app_dir, studies, conf):
        self.models = Path(conf.get("bundle_root", BUNDLE)).expanduser() / "models"
        super().__init__(app_dir, studies, conf, name="lesion_flow", description=str(__doc__).splitlines()[0])

    def init_infers(self):
        """Tasks by the names that a viewer shows."""
        return {f"{mode}_lesion": Paint(mode, self.models, self.datastore) for mode in ("insert", "remove")}
