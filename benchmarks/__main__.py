"""`python -m benchmarks [NAME] [--small|--long]`: progress on stderr, JSON lines on stdout."""

import sys

from benchmarks.runner import main

sys.exit(main())
