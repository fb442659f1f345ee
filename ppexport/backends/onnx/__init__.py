"""ONNX: builder, linter and the runner on ONNX Runtime."""
