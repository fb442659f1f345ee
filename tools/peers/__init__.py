"""Parts of tools/compare_peers.py: what is compared, how it is timed, statistics, and the report."""
