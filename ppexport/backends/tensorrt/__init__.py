"""TensorRT: builder, engine artefacts and their runner."""
