"""What every test shares: two threads, so that the suite keeps its time on a small machine."""

import torch

torch.set_num_threads(2)
