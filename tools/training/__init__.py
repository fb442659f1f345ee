"""Parts of tools/train.py: data, networks, schedule, saved state, loop, log."""
