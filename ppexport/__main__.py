"""`python -m ppexport`."""

from ppexport.cli import run

run()
