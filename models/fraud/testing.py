"""What the fraud model's tests train: a network of seconds, for a fold of 75 generated days."""

from __future__ import annotations

import datetime as dt

from models.fraud.history import day_number
from models.fraud.protocol import Fold
from models.fraud.release_training import Choices
from models.tabular.network import Shape
from models.tabular.training import Recipe

QUICK = Recipe(Shape(members=2, hidden=(8,)), epochs=30, least_steps=1, batch=256, learning_rate=5e-3, keep=0.3)
FOLD = Fold(day_number(dt.date(2018, 6, 5)))
CHOICES = Choices(review_budget=20, recipe=QUICK)
