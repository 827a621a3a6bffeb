"""`python -m epg`, where the command `epg` is not on the path."""

import sys

from epg.cli import entry

sys.exit(entry())
