"""Defines the option --format of commands that write masks: every output format there is."""

from typing import Annotated

import tyro

from sam_jax.everything.formats import FORMATS

OutputFormatName = Annotated[
    str,
    tyro.conf.arg(
        constructor=tyro.extras.literal_type_from_choices(FORMATS),
        help="; ".join(f"{name}: {form.description}" for name, form in FORMATS.items()) + ".",
    ),
]
