"""The `sam-jax` command: a module for each subcommand."""
