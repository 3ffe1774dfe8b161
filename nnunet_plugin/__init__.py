"""Synthetic training cases for stock nnU-Net: `add_pool` imports, `nnUNetTrainerSynthAug` trains with them.

Knows nnU-Net and the pool format, and no generator. Importing this module alone imports neither.
"""

from pathlib import Path


def ext_path() -> Path:
    """Return the folder for the environment variable `nnUNet_extTrainer` (it holds the trainer alone).

    Example:
        export nnUNet_extTrainer=$(synthaug ext-path)
    """
    return Path(__file__).resolve().parent / "trainers"
