"""Defines the `sam-jax` command, with a module for each subcommand."""
