"""Which tests of blocks are collected."""

from importlib.util import find_spec

# Beside released implementations: `make parity` installs them, for they slow every import down.
collect_ignore = [] if find_spec("transformers") else ["test_parity.py"]
