"""`ppexport lint FILE.tflite`: what LiteRT's GPU accelerator refuses, computes wrong, or would compute in fp16.

The rules know LiteRT 2.3, whose accelerator was run on Linux (docs/litert-gpu.md); nothing of a file is run.
"""
