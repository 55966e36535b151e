import os

# Before CUDA starts: it numbers GPUs as nvidia-smi and the driver's management library do, not the fastest first.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

__version__ = "0.1.0"
