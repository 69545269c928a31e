"""The TorchServe archive (.mar) of a release: the exported module and the handler, nothing else."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from model_release.manifest import MODULE_FILE


def write_archive(folder: Path, release: str, handler: Path) -> Path:
    """Packs `folder`/module.pt2 and the handler into `folder`/<release>.mar and returns its path.

    Raises:
        FileNotFoundError: the handler or the module is missing.
    """
    from model_archiver.model_archiver_config import ModelArchiverConfig  # type: ignore[import-untyped]
    from model_archiver.model_packaging_utils import ModelExportUtils  # type: ignore[import-untyped]

    config = ModelArchiverConfig(
        model_name=release, handler=handler.name, version="1", serialized_file=MODULE_FILE, runtime="python"
    )
    with tempfile.TemporaryDirectory(prefix="mar-") as staging:
        shutil.copyfile(handler, Path(staging) / handler.name)
        shutil.copyfile(folder / MODULE_FILE, Path(staging) / MODULE_FILE)
        # The archiver's own staging folder is named by the model alone, which two trainings would share.
        ModelExportUtils.archive(
            str(folder), release, staging, ModelExportUtils.generate_manifest_json(config), "zip-store"
        )
    return folder / f"{release}.mar"
