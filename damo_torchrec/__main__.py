"""`python -m damo_torchrec`: the command-line tool."""

import sys

from damo_torchrec.cli import main

sys.exit(main())
