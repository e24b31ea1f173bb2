"""Counts the records that cannot be used, and decides how many are too many."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable

from sam_jax.errors import BadRecord, UserError

logger = logging.getLogger(__name__)

BAD_ALWAYS_ALLOWED = 10  # records, whatever fraction of all they are
BAD_IN_A_ROW = 100


def count_reasons(problems: Iterable[BadRecord]) -> list[str]:
    """Formats how many problems there are for each reason, with the first of each, in the order in which they came."""
    first: dict[str, BadRecord] = {}
    counts: Counter[str] = Counter()
    for problem in problems:
        first.setdefault(problem.reason, problem)
        counts[problem.reason] += 1
    return [f"{count} x {reason}; the first: {first[reason]}" for reason, count in counts.items()]


@dataclasses.dataclass
class PreparationReport:
    """How many images and masks were prepared, and what was wrong with the records that were left out."""

    images: int = 0
    masks: int = 0
    problems: list[BadRecord] = dataclasses.field(default_factory=list)
    mask_problems: list[BadRecord] = dataclasses.field(default_factory=list)  # of images that are prepared without them

    @property
    def left_out(self) -> list[BadRecord]:
        """Returns what was wrong with each record and each mask."""
        return self.problems + self.mask_problems


class BadRecords:
    """Counts records that could not be used, and stops a run that meets too many.

    Args:
        max_fraction: fraction of all records that may be bad; `BAD_ALWAYS_ALLOWED` of them may be in any case.
        total: records that there will be, if that is known: the fraction is then of these. 0: not known.
        in_a_row: this many bad ones without a good one between them are too many.
    """

    def __init__(self, max_fraction: float, total: int = 0, in_a_row: int = BAD_IN_A_ROW) -> None:
        self.max_fraction, self.total, self.max_in_a_row = max_fraction, total, in_a_row
        self.records = self.bad = self.in_a_row = 0
        self.reasons: dict[str, int] = {}
        self.masks: dict[str, int] = {}  # that are left out of images that are used, by reason
        self._told: set[str] = set()

    def count(self, problem: BadRecord | None) -> None:
        """Counts one record, and what is wrong with it; None: nothing.

        Raises:
            UserError: too many were bad.
        """
        self.records += 1
        if problem is None:
            self.in_a_row = 0
            return
        self.bad += 1
        self.in_a_row += 1
        self.reasons[problem.reason] = self.reasons.get(problem.reason, 0) + 1
        self._tell(problem, self.bad, "left out")
        too_many = self.bad > max(BAD_ALWAYS_ALLOWED, self.max_fraction * max(self.records, self.total))
        if too_many or self.in_a_row >= self.max_in_a_row:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.reasons.items())
            raise UserError(
                f"{self.bad} of {self.records} records cannot be used ({reasons}), the last {self.in_a_row} of them "
                f"in a row; the last one: {problem}. Mend the data, or allow more with --data.max-bad-fraction "
                "(sam-jax prepare: --max-bad-fraction)"
            )

    def count_mask(self, problem: BadRecord) -> None:
        """Counts one mask that is left out of an image that is used."""
        self.masks[problem.reason] = self.masks.get(problem.reason, 0) + 1
        self._tell(problem, sum(self.masks.values()), "mask left out")

    def _tell(self, problem: BadRecord, so_far: int, what: str) -> None:
        few, milestone = so_far <= BAD_ALWAYS_ALLOWED, so_far & (so_far - 1) == 0
        if str(problem) not in self._told if few else milestone:  # the same record comes again, epoch by epoch
            self._told.add(str(problem))
            logger.warning("%s, %d so far: %s", what, so_far, problem)
