"""Qualcomm's NPU: ONNX graphs compiled ahead of time for a Snapdragon chip."""
