"""What `tools/cuda_checks.py` is made of."""
