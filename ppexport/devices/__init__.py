"""Machines that work is done on: this one, or one behind ssh. Standard library only."""
