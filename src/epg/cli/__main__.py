"""`python -m epg.cli`, and so `torchrun -m epg.cli`."""

import sys

from epg.cli import entry

sys.exit(entry())
