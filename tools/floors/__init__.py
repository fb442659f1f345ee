"""The parts of ATD-light as ONNX Runtime's own kernels compute them, each alone: what kernel_floors.py is made of."""
