"""Tests; the folders mirror src/dlen."""

import os

# Models are tiny: beside another process, two threads take seven times as long as one. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
