"""Makes a Prefect server ready: block types, a document of each block, and the work pool. Running it again is safe.

    python -m deployments.bootstrap [--root FOLDER] [--pool NAME]
"""

import argparse
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from storage import ArtifactStore, CheckpointStore

BLOCK = "default"


def save_blocks(root: Path) -> list[str]:
    """Registers both block types and saves a document of each, unless there is one. Returns what was made."""
    made = []
    for block, folder in ((ArtifactStore, root / "artifacts"), (CheckpointStore, root / "chains")):
        block.register_type_and_schema()
        try:
            block.load(BLOCK)
        except ValueError:
            block(root=str(folder.absolute())).save(BLOCK)
            made.append(f"{block._block_type_slug}/{BLOCK}")
    return made


def make_pool(name: str) -> bool:
    """Makes the process work pool. Returns False where it was there."""
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", description="mathtune: one machine with a GPU"))
        except ObjectAlreadyExists:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(".mathtune"), help="folder of artifacts/ and chains/")
    parser.add_argument("--pool", default="gpu")
    arguments = parser.parse_args()
    for block in save_blocks(arguments.root):
        print(f"saved block {block}")
    print(f"work pool {arguments.pool}: {'made' if make_pool(arguments.pool) else 'is there'}")


if __name__ == "__main__":
    main()
