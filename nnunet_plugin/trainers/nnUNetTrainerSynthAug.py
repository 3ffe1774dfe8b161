"""Names the trainer class for nnU-Net's search in `nnUNet_extTrainer`.

nnU-Net forgets what it imported from that folder, so anything that background workers unpickle lives in the
installed package instead.
"""

from nnunet_plugin.trainer import nnUNetTrainerSynthAug

__all__ = ["nnUNetTrainerSynthAug"]
