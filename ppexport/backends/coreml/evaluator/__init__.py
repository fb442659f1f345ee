"""Runs the program of a saved package on any machine, operation by operation, with PyTorch.

It checks the *converted program*: its operations, constants, types and roundings. It does not check Apple's kernels,
which sum in another order, may keep more or fewer bits inside an operation, and differ between CPU, GPU and Neural
Engine: what they compute is known on a device only.
"""
