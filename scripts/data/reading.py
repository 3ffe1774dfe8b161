"""NIfTI files through MONAI, none of whose voxels lose what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.data import NibabelReader
from nnunet_plugin.voxels import as_image


class WholeReader(NibabelReader):
    """MONAI's reader, which refuses voxels that float32, in which MONAI computes, cannot hold."""

    def _get_array_data(self, img: Any, filename: str) -> np.ndarray:
        return as_image(super()._get_array_data(img, filename), filename)
