"""What every test runs under."""

import os

# as the command line does, before torch is imported: spinning threads slow a busy machine many times over
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
