"""OpenVINO: runs ONNX artefacts, which need no conversion."""
