"""Latency: how long an artefact takes on a machine, measured so that it can be repeated and compared."""
