"""What a command raises when it cannot do what was asked, and the exit code each kind of failure ends in.

    0 done    1 a bug in trine    2 wrong usage    3 bad input    4 something needed is unavailable    130 Ctrl-C

Commands let the packages' own errors pass; `EXIT_CODES` knows the roots of their exception trees by name, so that
nothing is imported for it.
"""

from __future__ import annotations

BUG, USAGE, BAD_INPUT, UNAVAILABLE = 1, 2, 3, 4


class CommandError(Exception):
    """A failure that the user can do something about; the message names what was wrong and what would be right."""

    exit_code = BUG


class UsageError(CommandError):
    """Options that do not go together, or a value that no option takes."""

    exit_code = USAGE


class BadInput(CommandError):
    """A file, folder, row or release that cannot be used as it is."""

    exit_code = BAD_INPUT


class Unavailable(CommandError):
    """A server, port or file that is needed and not there now."""

    exit_code = UNAVAILABLE


EXIT_CODES = {
    "batch_scorer.errors.JobError": BAD_INPUT,
    "batch_scorer.errors.InputError": BAD_INPUT,
    "batch_scorer.errors.StorageError": UNAVAILABLE,
    "batch_scorer.errors.ChecksFailed": 5,
    "batch_scorer.errors.Superseded": 6,
    "batch_scorer.errors.JobBusy": 75,
    "batch_scorer.predictions.UnknownJob": BAD_INPUT,
    "batch_scorer.predictions.RunLost": UNAVAILABLE,
    "feature_store.source_files.DatasetError": BAD_INPUT,
    "feature_store.definitions.DefinitionError": BAD_INPUT,
    "feature_store.log_positions.LogsUnreadable": UNAVAILABLE,
    "feature_store.online.StoreUnavailable": UNAVAILABLE,
    "feature_store.online.StoreMisconfigured": UNAVAILABLE,
    "feature_store.state_versions.NotCaughtUp": UNAVAILABLE,
    "feature_store.state_versions.RebuildSuperseded": UNAVAILABLE,
    "model_release.errors.ReleaseError": BAD_INPUT,
    "model_release.rollout.MoveRefused": BAD_INPUT,
    "model_release.rollout.NotLoaded": 5,
    "model_release.rollout.PointerMoved": 6,
    "models.fraud.errors.FraudDataError": BAD_INPUT,
    "models.importing.errors.ImportFailed": BAD_INPUT,
    "models.recommender.errors.RecommenderError": BAD_INPUT,
    "models.tabular.errors.TooLittleData": BAD_INPUT,
    "service_kit.settings.SettingsError": BAD_INPUT,
    "redis.exceptions.ConnectionError": UNAVAILABLE,
    "redis.exceptions.TimeoutError": UNAVAILABLE,
    "cimpl.KafkaException": UNAVAILABLE,
    "grpc.RpcError": UNAVAILABLE,
    "builtins.ConnectionError": UNAVAILABLE,
    "builtins.FileNotFoundError": BAD_INPUT,
    "builtins.FileExistsError": BAD_INPUT,
    "builtins.NotADirectoryError": BAD_INPUT,
    "builtins.PermissionError": BAD_INPUT,
}


def exit_code(error: BaseException) -> int:
    """The process's exit code for an exception that left a command."""
    if isinstance(error, CommandError):
        return error.exit_code
    for kind in type(error).__mro__:
        if code := EXIT_CODES.get(f"{kind.__module__}.{kind.__qualname__}"):
            return code
    return BUG
