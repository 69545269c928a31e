"""The model card of a recommender's release: for a person who has to decide whether to use it."""

from __future__ import annotations

from typing import Any


def model_card(training: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Markdown; the same inputs give the same text (the release's name comes from the content, this text included)."""
    recipe = training["recipe"]
    half_life = recipe["half_life_days"]
    lines = [
        "# Recommender",
        "",
        "Recommends to every user the items that they have not had yet, from what they did until now.",
        "",
        "## What it is",
        "",
        f"Two towers. A user's embedding ({recipe['dimensions']} numbers, and a 1 for the items' bias) is the weighted "
        "mean of the vectors of the items in their history, by the root of the squared weights; an item's embedding is "
        "learnt. The score is their dot product. New users and new interactions need no training, new items do.",
        "An interaction's weight "
        + ("does not depend on its age" if half_life is None else f"halves every {half_life:g} days")
        + (
            " and follows its value." if recipe["by_value"] else "; its value does not count, but 0 counts for nothing."
        ),
        "Embeddings and scores are exact numbers: they depend neither on batch, order, threads nor machine.",
        "",
        "## Data",
        "",
        "| | |",
        "|---|---|",
        f"| interactions | {training['from']} to {training['to']}: {training['interactions']:,} |",
        f"| users, items | {training['users']:,}, {training['items']:,} |",
        "",
        "## Quality",
        "",
        "The same recipe, fitted on the training part of each split and measured on the rest; `user`: a quarter of "
        "each user's items at random, `time`: the last quarter of the interactions. Popularity: by number of users.",
        "",
        "| split | by | nDCG@10 | precision@10 | recall@10 | users |",
        "|---|---|---|---|---|---|",
    ]
    for name, sides in metrics["splits"].items():
        for side, found in sides.items():
            lines.append(
                f"| {name} | {side} | {found['ndcg_at_10']} | {found['precision_at_10']} | {found['recall_at_10']} "
                f"| {found['users']} |"
            )
    lines += [
        "",
        "## Limits",
        "",
        "It recommends what people with like histories did, so it follows what was shown to them. Items that were not "
        "there in training are never recommended: train again as often as items come. A user without a known item gets "
        "what is liked by all.",
        "",
    ]
    return "\n".join(lines)
