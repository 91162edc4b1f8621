"""The two blocks. Every field has a default: a new required one would make saved documents unloadable."""

from pathlib import Path
from typing import Annotated

from prefect.blocks.core import Block
from pydantic import AfterValidator, Field

import mathtune.chain
import mathtune.store
from mathtune.credentials import refuse_credentials
from mathtune.folders import open_folders


def without_credentials(root: str) -> str:
    """A place; everybody who reaches the server reads it, and lists of what is there print it.

    Raises:
        RecipeError: it has a password in it.
    """
    refuse_credentials({"root": root}, "block")
    return root


Place = Annotated[str, AfterValidator(without_credentials)]


class ArtifactStore(Block):
    """Where Parquet artifacts lie, each under the digest of all that decides it."""

    _block_type_name = "mathtune artifact store"
    _block_type_slug = "mathtune-artifact-store"
    _description = "Parquet artifacts of mathtune's stages, by content key."

    root: Place = Field(".mathtune/artifacts", description="local folder, or a URL such as s3://bucket/prefix", title="Place")
    cache: str = Field(".mathtune/artifacts", description="local folder of copies, for a URL", title="Copies")

    def open(self) -> mathtune.store.ArtifactStore:
        """The store itself. Credentials come from the environment (AWS_ACCESS_KEY_ID …), never from the block."""
        return mathtune.store.ArtifactStore(open_folders(self.root, Path(self.cache)))


class CheckpointStore(Block):
    """Where chains lie: pins, links with their adapters, and the checkpoints of the link that is being trained."""

    _block_type_name = "mathtune checkpoint store"
    _block_type_slug = "mathtune-checkpoint-store"
    _description = "Chains of adapters, and the checkpoints of the chunk that is being trained."

    root: Place = Field(".mathtune/chains", description="local folder, or a URL such as s3://bucket/prefix", title="Place")
    cache: str = Field(".mathtune/chains", description="local folder of copies, for a URL", title="Copies")

    def open(self, chain: str) -> mathtune.chain.Chain:
        """One chain of the store. Credentials come from the environment, never from the block."""
        return mathtune.chain.Chain(open_folders(self.root, Path(self.cache)), chain)
