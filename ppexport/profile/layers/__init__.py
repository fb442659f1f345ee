"""Time by layer: what every runtime tells of its operations, mapped to PyTorch modules and summed."""
