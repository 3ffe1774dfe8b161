"""What every test shares: as many threads as cores for each of the processes that pytest-xdist starts."""

import os

import torch

threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 2)))
os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of what tests start
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait stall the others
torch.set_num_threads(threads)
