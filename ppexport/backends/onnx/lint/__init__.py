"""`ppexport lint`: what in an ONNX file would fail, run slowly, or be needlessly large on an edge runtime.

Works on any ONNX model without running it and without any runtime installed: the rules know the oldest versions that
this project supports. Parsing, checking, inference and folding are onnx's own. Needs the `export` extra, but no torch.
"""
