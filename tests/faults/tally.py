"""How often a fault was tried, what happened, and what should not have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Outcomes of one fault by name, and descriptions of those that are failures."""

    fault: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def survived(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def failed(self, description: str) -> None:
        self.outcomes["failed"] += 1
        self.failures.append(description)

    @property
    def tried(self) -> int:
        return sum(self.outcomes.values())

    def add(self, other: Tally) -> None:
        self.outcomes += other.outcomes
        self.failures += other.failures

    def to_json(self) -> dict[str, object]:
        tried = self.tried
        return {
            "fault": self.fault,
            "tried": tried,
            "survived": tried - self.outcomes["failed"],
            "outcomes": dict(sorted((+self.outcomes).items())),
            "failures": self.failures[:20],
        }
