"""A folder to publish, and ways to damage a file."""

from pathlib import Path


def build(folder: Path) -> dict:
    """Fills a folder with two files, one of them further down."""
    (folder / "inner").mkdir()
    (folder / "rows.bin").write_bytes(b"rows" * 1000)
    (folder / "inner" / "more.bin").write_bytes(b"more")
    return {"rows": 4}


def damage_file(path: Path, how: str) -> None:
    """Damages a file in place: flip (one bit in its middle), truncate, empty, zeroes (its tail), remove."""
    data = bytearray(path.read_bytes())
    match how.removeprefix("no manifest"):
        case "flip" | "manifest":
            data[len(data) // 2] ^= 1
        case "truncate":
            data = data[:-9]
        case "empty":
            data = bytearray()
        case "zeroes":
            data[len(data) // 2:] = bytes(len(data) - len(data) // 2)
        case _:
            path.unlink()
            return
    path.write_bytes(data)
