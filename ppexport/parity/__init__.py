"""Proof that network, twin and artifact compute the same picture."""
