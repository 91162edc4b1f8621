"""The artifact store: built once, checked when read, damage set aside and made good."""

import pytest

from mathtune.store import ArtifactStore
from tests.folders_fixtures import build, damage_file


def test_the_same_key_is_built_once(folders):
    store = ArtifactStore(folders)
    made = store.get_or_build("stage", "key", build)
    found = store.get_or_build("stage", "key", lambda folder: pytest.fail("built again"))
    assert (made.cached, found.cached) == (False, True)
    assert found.facts == {"rows": 4} and set(found.files) == {"rows.bin", "inner/more.bin"}
    assert found.digest == made.digest


def test_a_build_that_fails_leaves_nothing(folders):
    def fails(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError):
        ArtifactStore(folders).get_or_build("stage", "key", fails)
    assert folders.children("stage") == [] and list(folders.local("stage").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "manifest", "no manifest"])
def test_damage_is_seen_named_set_aside_and_made_good(tmp_path, damage):
    store = ArtifactStore(tmp_path)
    folder = store.get_or_build("stage", "key", build).folder
    damage_file(folder / "manifest.json" if "manifest" in damage else folder / "rows.bin", damage)
    again = store.get_or_build("stage", "key", build)
    assert not again.cached and again.path("rows.bin").read_bytes() == b"rows" * 1000
    aside = next(path for path in (tmp_path / "stage").iterdir() if path.name.startswith("damaged-"))
    assert ("manifest.json" if "manifest" in damage else "rows.bin") in (aside / "WHY.txt").read_text()
    assert len(store.damaged) == 1
