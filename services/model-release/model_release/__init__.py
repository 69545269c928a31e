"""Model releases: immutable folders that say what they are and prove it.

Reading one needs no torch: `open_release`, `model_release.policy`. Writing and running the module do:
`model_release.writer`, `model_release.scoring_module`, `model_release.exact_network` for tabular releases,
`model_release.recommender_writer`, `model_release.user_tower` for recommenders.
"""

from model_release.errors import ReleaseError
from model_release.manifest import Manifest, Policy, RecommenderManifest, Rule, Thresholds
from model_release.recommender import RecommenderRelease
from model_release.release import Release, files_of, list_releases, list_request_releases, open_release

__all__ = [
    "Manifest",
    "Policy",
    "RecommenderManifest",
    "RecommenderRelease",
    "Release",
    "ReleaseError",
    "Rule",
    "Thresholds",
    "files_of",
    "list_releases",
    "list_request_releases",
    "open_release",
]
