"""An ONNX file as lint rules see it: read without trust, flattened, without the weights' data, with every shape.

model_file   bytes -> checked ModelProto
build        ModelProto -> GraphView
view         the GraphView
constants    what is stored, and how much
inference    shapes, and what decides each tensor's content
folding      arithmetic on shapes that are known
partial      arithmetic on shapes that are known in part
"""
