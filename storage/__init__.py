"""Prefect blocks that say where artifacts and checkpoints lie; editable in Prefect's UI.

The stores themselves are ``mathtune.store`` and ``mathtune.chain``; a block only configures them, and a run needs none.
"""

from storage.blocks import ArtifactStore, CheckpointStore

__all__ = ["ArtifactStore", "CheckpointStore"]
