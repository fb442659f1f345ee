"""OpenVINO: runs ONNX artifacts, which need no conversion."""
