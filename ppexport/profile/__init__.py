"""Latency: how long an artifact takes on a machine, measured so that it can be repeated and compared."""
