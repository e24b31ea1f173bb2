"""Holds the configs that come with the package, also installed as `sam_jax.configs`; `eval_*` are evaluations.

`sam-jax train NAME` and `sam-jax eval NAME` run them; with --help in place of NAME they list them.
"""
