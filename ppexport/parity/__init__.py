"""Proof that network, twin and artefact compute the same picture."""
