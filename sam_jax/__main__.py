"""`python -m sam_jax` is `sam-jax`."""

import sys

from sam_jax.commands.main import main

sys.exit(main())
