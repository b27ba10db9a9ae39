"""Shared by all tests; its presence puts ``tests`` on the path for ``tiny_models``."""

import os

# Two cores are shared by several test processes; thread pools only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
