"""A chain: what is pinned for its life, and the immutable links trained on it, in order.

On disk, below ``CHAINS/NAME/``:

    pins.json          digests of base, tokenizer, prompt, adapter shape, pool and validation rows
    links/0001-…/      one folder a link: link.json, adapter/ (a plain PEFT folder), manifest.json
    head-0001          names the first link's folder; created only if absent, so two workers cannot both extend a chain
    records/LINK.json  what was learned about a link later (its metrics)
    work/KEY/          checkpoints of the link that is being trained

A link folder without its head file was killed before it was accepted; the next run accepts it as it is.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mathtune.digests import digest_value
from mathtune.errors import ChainError, StoreError
from mathtune.ranges import Range
from mathtune.store import create_once, publish_folder, read_manifest, write_json


@dataclass(frozen=True)
class Link:
    """One trained range, or one GRPO refinement (start and end are None).

    Attributes:
        number: 1, 2, 3 … along the chain.
        kind: ``"sft"`` or ``"grpo"``.
        key: digest of all that decided it: parent, rows, recipe sections.
        parent: key of the link before it, ``""`` for the first.
        decided_by: the recipe sections and digests behind ``key``, for a person to compare.
        lora: shape of its adapter.
        result: what the engine reported (counts, curve, seconds).
    """

    number: int
    kind: str
    key: str
    parent: str
    start: int | None
    end: int | None
    adapter_digest: str
    decided_by: dict[str, Any]
    lora: dict[str, Any]
    result: dict[str, Any]
    versions: dict[str, str]
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    @property
    def range(self) -> Range | None:
        return None if self.start is None else Range(self.start, self.end)

    @property
    def title(self) -> str:
        """``sft[0:20000)`` or ``grpo``."""
        return f"{self.kind}{self.range or ''}"


class Chain:
    """Reads and extends one chain.

    Args:
        root: folder of all chains.
        name: the chain's name.
    """

    def __init__(self, root: Path, name: str):
        self.name, self.folder = name, root / name

    def pins(self) -> dict[str, str] | None:
        """What the chain pins; None while it does not exist."""
        path = self.folder / "pins.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def check_pins(self, wanted: dict[str, str]) -> None:
        """Holds that the chain, if it exists, pins this.

        Raises:
            ChainError: names every field that differs.
        """
        pinned = self.pins()
        if pinned is None:
            return
        different = sorted(name for name in pinned.keys() | wanted.keys() if pinned.get(name) != wanted.get(name))
        if different:
            raise ChainError(f"the recipe disagrees with what the chain pins: {', '.join(different)}",
                             where=f"chain {self.name}", remedy="go back to the recipe it was made with, or chain=NEW")

    def links(self) -> list[Link]:
        """The accepted links in order, each folder's bytes checked against its manifest.

        Raises:
            StoreError: a link is damaged. It is never made again silently: later links grew from it.
        """
        heads = sorted(self.folder.glob("head-*"))
        return [self._read(self.folder / "links" / head.read_text().strip()) for head in heads]

    def adapter(self, link: Link) -> Path:
        """The link's PEFT folder."""
        return self._folder(link.number, link.title, link.key) / "adapter"

    def checkpoints(self, key: str) -> Path:
        """Where the checkpoints of the link with this key lie while it is trained."""
        return self.folder / "work" / key[:16]

    def extend(self, number: int, title: str, key: str, pins: dict[str, str], train: Callable[[Path], Link]) -> Link:
        """Lets ``train`` write an adapter folder, publishes the link, and moves the head to it.

        The first link pins the chain: a run that fails before it leaves nothing that a corrected recipe must obey.

        Args:
            number: of the new link.
            title: as ``Link.title``.
            key: as ``Link.key``.
            pins: what the chain pins from its first link on.
            train: fills the folder it is given with the adapter and returns the link.

        Raises:
            ChainError: another worker extended the chain meanwhile.
        """
        folder = self._folder(number, title, key)
        if not folder.is_dir():
            publish_folder(folder, lambda staging: self._write(staging, train), {"stage": "link", "key": key})
        link = self._read(folder)
        create_once(self.folder / "pins.json", json.dumps(pins, indent=2) + "\n")
        self.check_pins(pins)
        head = self.folder / f"head-{number:04d}"
        if not create_once(head, folder.name + "\n") and head.read_text().strip() != folder.name:
            raise ChainError(f"another worker has added link {number} meanwhile; its link stays", where=f"chain {self.name}",
                             remedy="run the same command again: it goes on from the new head")
        shutil.rmtree(self.checkpoints(key), ignore_errors=True)
        return link

    def record(self, link: Link) -> dict[str, Any]:
        """What was learned about a link after it was trained, ``{}`` if nothing was."""
        path = self.folder / "records" / f"{link.key}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def write_record(self, link: Link, record: dict[str, Any]) -> None:
        write_json(self.folder / "records" / f"{link.key}.json", record)

    def _folder(self, number: int, title: str, key: str) -> Path:
        plain = title.replace("[", "-").replace(":", "-").replace(")", "")
        return self.folder / "links" / f"{number:04d}-{plain}-{key[:12]}"

    def _write(self, staging: Path, train: Callable[[Path], Link]) -> dict[str, Any]:
        link = train(staging / "adapter")
        write_json(staging / "link.json", asdict(link))
        return {}

    def _read(self, folder: Path) -> Link:
        try:
            read_manifest(folder)
        except StoreError as error:
            raise StoreError(f"a link of the chain is damaged: {error.what}", where=error.where,
                             remedy="restore the folder from a copy, or train a new chain with chain=NEW") from error
        return Link(**json.loads((folder / "link.json").read_text()))


def link_key(parent: Link | None, kind: str, decided_by: dict[str, Any]) -> str:
    """Digest of all that decides a link: its parent, its kind, its rows' digest and the recipe sections it follows."""
    return digest_value({"parent": parent.key if parent else "", "kind": kind, "decided_by": decided_by})


def disagreements(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the values in which two nested mappings differ."""
    names = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            names += disagreements(before, after, f"{prefix}{name}.")
        elif before != after:
            names.append(f"{prefix}{name}")
    return names
