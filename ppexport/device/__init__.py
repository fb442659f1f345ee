"""What boards get: artifact, mask, runner, sensors and the latency protocol, for Python 3.8 and NumPy 1.17."""
