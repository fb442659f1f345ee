"""Calibration, and fp16 and int8 graphs made with it."""
