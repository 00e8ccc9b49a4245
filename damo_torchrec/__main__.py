"""`python -m damo_torchrec`: the command-line tool."""

import sys

from damo_torchrec.cli.main import main

sys.exit(main())
