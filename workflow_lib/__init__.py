import os

# Set before CUDA starts, so that CUDA numbers GPUs as nvidia-smi and NVML do, and not the fastest first.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

__version__ = "0.1.0"
