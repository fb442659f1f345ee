"""ExecuTorch: programs for apps that embed PyTorch's runtime."""
