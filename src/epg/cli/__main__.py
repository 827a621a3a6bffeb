"""`python -m epg.cli`, and so `torchrun -m epg.cli`."""

import sys

from epg.cli import main

sys.exit(main())
