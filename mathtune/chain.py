"""A chain: what is pinned for its life, and the immutable links trained on it, in order.

Below ``CHAINS/NAME/``, in a folder or in an object store (``mathtune.folders``):

    pins.json          digests of base, tokenizer, prompt, adapter shape, pool and validation rows
    links/0001-…/      one published folder a link: link.json, adapter/ (a plain PEFT folder), manifest.json
    head-0001          names the first link's folder, its manifest's digest and the verdict; created only if absent, so two
                       workers cannot both extend a chain
    records/LINK.json  what was learned about a link later (its metrics, why it was rejected)
    work/KEY/          checkpoints and journal of the link that is being trained
    leases/            who is at work (``mathtune.locks``)

A link is trained, published, judged, and then accepted: its head is created. One that is killed on the way, or rejected,
lies in ``links/`` without a head; the same command finds it there and does not train it again.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mathtune.digests import digest_value
from mathtune.errors import ChainError, Damaged, TakenOver
from mathtune.files import MANIFEST, parse_manifest, write_json
from mathtune.folders import Folders
from mathtune.ranges import Range

Verdict = Literal["accepted", "accepted by a person", "skipped"]
STAGE = "link"
READABLE = ("task", "quantization", "lora")  # what is pinned in words, not as a digest


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


@dataclass(frozen=True)
class Entry:
    """A place of the chain: a link that belongs to it, or one that a person skipped (its rows count as seen)."""

    link: Link
    verdict: Verdict

    @property
    def accepted(self) -> bool:
        """Whether later links grow from it."""
        return self.verdict != "skipped"


class Chain:
    """Reads and extends one chain.

    Args:
        folders: where all chains lie.
        name: the chain's name.
    """

    def __init__(self, folders: Folders, name: str):
        self.folders, self.name = folders, name

    def pins(self) -> dict[str, str] | None:
        """What the chain pins; None while it does not exist."""
        text = self.folders.read(f"{self.name}/pins.json")
        return json.loads(text) if text else None

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
            shown = [f"{name} ({_difference(pinned[name], wanted[name])})" if name in READABLE else name for name in different]
            raise ChainError(f"the recipe disagrees with what the chain pins: {', '.join(shown)}", where=f"chain {self.name}",
                             remedy="go back to the recipe it was made with (recipe.yaml in the run's folder), or chain=NEW")

    def entries(self) -> list[Entry]:
        """Accepted and skipped links in order.

        Raises:
            StoreError: a head or a link is damaged. It is never made again silently: later links grew from it.
        """
        heads = [name for name in self.folders.texts(self.name) if name.rpartition("/")[2].startswith("head-")]
        return [self._entry(head) for head in heads]

    def links(self) -> list[Link]:
        """The accepted links in order."""
        return [entry.link for entry in self.entries() if entry.accepted]

    def adapter(self, link: Link) -> Path:
        """The link's PEFT folder on this machine, every byte checked.

        Raises:
            StoreError: it is damaged.
        """
        try:
            return self.folders.fetch(self._folder(link.number, link.title, link.key)).folder / "adapter"
        except Damaged as error:
            raise _damaged(error) from error

    def checkpoints(self, key: str) -> str:
        """Name below which the checkpoints of the link with this key lie while it is trained."""
        return f"{self.name}/work/{key[:16]}"

    def candidate(self, number: int, title: str, key: str) -> Link | None:
        """A link that was trained and published, whatever became of it; None if there is none. A damaged one that is not
        in the chain is set aside."""
        folder = self._folder(number, title, key)
        try:
            return self._read(folder) if self.folders.fetch(folder) else None
        except Damaged as error:
            self.folders.set_aside(folder, str(error))
            return None

    def publish(self, number: int, title: str, key: str, train: Callable[[Path], Link]) -> Link:
        """Lets ``train`` write an adapter folder and publishes it as a link that is not in the chain yet.

        Args:
            number: of the new link.
            title: as ``Link.title``.
            key: as ``Link.key``.
            train: fills the folder it is given with the adapter and returns the link.
        """
        folder = self._folder(number, title, key)
        self.folders.sweep(f"{self.name}/links")
        self.folders.publish(folder, lambda staging: _write(staging, train), {"stage": STAGE, "key": key})
        return self._read(folder)

    def settle(self, link: Link, pins: dict[str, str], verdict: Verdict) -> None:
        """Gives a published link its place in the chain: the head moves to it, or, skipped, past it. Checkpoints go.

        The first link pins the chain: a run that fails before it leaves nothing that a corrected recipe must obey.

        Raises:
            TakenOver: another worker extended the chain meanwhile.
            ChainError: the chain, begun meanwhile, pins something else.
        """
        folder = self._folder(link.number, link.title, link.key)
        self.folders.create_once(f"{self.name}/pins.json", json.dumps(pins, indent=2) + "\n")
        self.check_pins(pins)
        head = f"{self.name}/head-{link.number:04d}"
        text = json.dumps({"link": folder.rpartition("/")[2], "manifest": _digest(self._manifest(folder)), "verdict": verdict})
        if not self.folders.create_once(head, text + "\n") and self.folders.read(head).strip() != text:
            raise TakenOver(f"another worker has added link {link.number} meanwhile; its link stays",
                            where=f"chain {self.name}", remedy="run the same command again: it goes on from the new head")
        work = f"{self.name}/work"
        self.folders.sweep(work)
        for other in self.folders.children(work):  # this link's, and those that nobody will go on from
            self.folders.remove(other)

    def sweep(self) -> None:
        """Removes what processes of this machine left unfinished when they were killed, and checkpoints of placed links."""
        for under in (self.name, f"{self.name}/links", f"{self.name}/work"):
            self.folders.sweep(under)
        placed = {self.checkpoints(entry.link.key) for entry in self.entries()}
        for name in placed.intersection(self.folders.children(f"{self.name}/work")):
            self.folders.remove(name)

    def rejected(self) -> list[Link]:
        """Links that were judged worse than their parent and wait for a person's word at the chain's end."""
        entries = self.entries()
        placed, number = {entry.link.key for entry in entries}, len(entries) + 1
        records = [json.loads(self.folders.read(name)) for name in self.folders.texts(f"{self.name}/records")]
        waiting = [record for record in records if record.get("verdict") == "rejected" and record["number"] == number]
        names = [f"{self.name}/links/{record['folder']}" for record in waiting if record["key"] not in placed]
        return [self._read(name) for name in names if self.folders.read(f"{name}/{MANIFEST}")]

    def record(self, link: Link) -> dict[str, Any]:
        """What was learned about a link after it was trained, ``{}`` if nothing was."""
        return json.loads(self.folders.read(f"{self.name}/records/{link.key}.json") or "{}")

    def write_record(self, link: Link, record: dict[str, Any]) -> None:
        """Adds to what was learned about a link."""
        folder = self._folder(link.number, link.title, link.key).rpartition("/")[2]
        whole = {**self.record(link), "key": link.key, "number": link.number, "folder": folder, **record}
        self.folders.write(f"{self.name}/records/{link.key}.json", json.dumps(whole, indent=2) + "\n")

    def _folder(self, number: int, title: str, key: str) -> str:
        plain = title.replace("[", "-").replace(":", "-").replace(")", "")
        return f"{self.name}/links/{number:04d}-{plain}-{key[:12]}"

    def _entry(self, head: str) -> Entry:
        try:
            facts = json.loads(self.folders.read(head))
            folder = f"{self.name}/links/{facts['link']}"
            manifest = self._manifest(folder)
            if _digest(manifest) != facts["manifest"]:
                raise Damaged("its bytes do not match the digest in the chain's head", where=f"{folder}/{MANIFEST}")
            return Entry(Link(**parse_manifest(manifest, folder)["facts"]), facts["verdict"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(Damaged("the head does not parse", where=f"{self.folders.url}/{head}")) from error
        except Damaged as error:
            raise _damaged(error) from error

    def _read(self, folder: str) -> Link:
        return Link(**parse_manifest(self._manifest(folder), folder)["facts"])

    def _manifest(self, folder: str) -> str:
        text = self.folders.read(f"{folder}/{MANIFEST}")
        if text is None:
            raise Damaged("the manifest is missing", where=f"{self.folders.url}/{folder}/{MANIFEST}")
        return text


def _write(staging: Path, train: Callable[[Path], Link]) -> dict[str, Any]:
    link = asdict(train(staging / "adapter"))
    write_json(staging / "link.json", link)
    return link


def _damaged(error: Damaged) -> Damaged:
    return Damaged(f"a link of the chain is damaged: {error.what}", where=error.where,
                   remedy="restore the folder from a copy, or train a new chain with chain=NEW")


def _difference(there: str, here: str) -> str:
    """What two lists in words do not share, for example ``rank 8 there, rank 4 here``."""
    ours, theirs = here.split(", "), there.split(", ")
    only_there, only_here = ([part for part in one if part not in other] for one, other in ((theirs, ours), (ours, theirs)))
    return f"{', '.join(only_there) or 'nothing more'} there, {', '.join(only_here) or 'nothing more'} here"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def chain_names(folders: Folders) -> list[str]:
    """Names of the chains that have a link."""
    return [name for name in folders.children("") if folders.read(f"{name}/pins.json")]


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
