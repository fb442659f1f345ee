"""Reference networks in PyTorch: any image size, any batch, boolean masks, a stable sort."""
