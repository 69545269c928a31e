"""What the generator of interactions can be told.

The process is this project's own; its parts are textbook ones. Tastes are latent, as topics are in latent Dirichlet
allocation (Blei, Ng, Jordan, 2003): an item belongs to few of T tastes, a user likes few of them, both by Dirichlet
draws. An item's popularity follows Zipf's law and fades after its release; a share of the items is released while the
data run. Every interaction picks one of the user's tastes and then one of its items by popularity; a share `wandering`
of them picks by popularity alone. Tastes drift: each user has an old and a new set, and the weight of the new one grows
linearly, from 0 on the first day to `drift` on the last. Users join during the first half; how often they come is
log-normal. Nobody comes back to the same item.
An interaction is a `view`, its value the share of the item that was seen: Beta-distributed, more of it where item and
tastes match. A share of the views, the greater the more was seen, is followed by a `like` of value 1.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass

from models.recommender.errors import ParameterError


@dataclass(frozen=True, slots=True)
class GeneratorParameters:
    """`views` is the mean number of a user's views before repeats are left out; half-lives are days, shares are of 1.

    `zipf`: the r-th item's popularity is r^-zipf; `user_spread`, `item_spread`: the Dirichlets' concentration, small
    for users and items of few tastes; `activity_spread`: standard deviation of the logarithm of a user's activity.
    """

    users: int = 2_000
    items: int = 1_500
    days: int = 180
    start: dt.date = dt.date(2018, 4, 1)
    seed: int = 0
    views: float = 120.0
    tastes: int = 12
    zipf: float = 0.8
    user_spread: float = 0.1
    item_spread: float = 0.03
    wandering: float = 0.1
    drift: float = 0.4
    new_share: float = 0.2
    popularity_half_life: float = 90.0
    activity_spread: float = 0.8
    like_share: float = 0.3

    def __post_init__(self) -> None:
        for name, most in (("users", 100_000_000), ("items", 10_000_000), ("days", 36_500), ("tastes", 1_000)):
            self._require(name, 1 <= getattr(self, name) <= most, f"1 to {most:,}")
        self._require("seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1")
        self._require("start", 2000 <= self.start.year < 2100, "2000-01-01 to 2099-12-31")
        self._require("days", self.days <= (dt.date(2100, 1, 1) - self.start).days, "an end before 2100-01-01")
        for name in ("views", "user_spread", "item_spread", "popularity_half_life"):
            self._require(name, 0 < getattr(self, name) <= 100_000, "more than 0, at most 100,000")
        for name in ("zipf", "activity_spread"):
            self._require(name, 0 <= getattr(self, name) <= 5, "0 to 5")
        for name in ("wandering", "drift", "new_share", "like_share"):
            self._require(name, 0 <= getattr(self, name) <= 1, "0 to 1")

    def to_json(self) -> dict[str, int | float | str]:
        """As dataset.json has it: the start as an ISO date."""
        return {**asdict(self), "start": self.start.isoformat()}

    def _require(self, name: str, holds: bool, right: str) -> None:
        if not holds:
            raise ParameterError(f"{name} is {getattr(self, name)}, must be {right}")
