"""A chain's links are immutable, in order, and extended by one worker only: on a disk and in an object store."""

import json
from dataclasses import replace

import pytest

from mathtune.chain import Chain, Entry, Link, chain_names, disagreements, link_key
from mathtune.errors import ChainError, StoreError, TakenOver
from mathtune.folders import open_folders
from mathtune.ranges import Range
from mathtune.store import ArtifactStore
from tests.folders_fixtures import damage_file

PINS = {"base": "b", "pool": "p", "prompt": "q"}


def make_link(number=1, parent="", start=0, end=10, key=None):
    return Link(number=number, kind="sft", key=key or f"key{number}" + "0" * 60, parent=parent, start=start, end=end,
                adapter_digest=f"adapter{number}", decided_by={"rows": "r"}, lora={"rank": 8}, result={"steps": 3}, versions={})


def writer(link, calls=None):
    def train(folder):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(link.key.encode())
        if calls is not None:
            calls.append(link.number)
        return link

    return train


def publish(chain, link, calls=None):
    return chain.publish(link.number, link.title, link.key, writer(link, calls))


def extend(chain, link, verdict="accepted"):
    published = publish(chain, link)
    chain.settle(published, PINS, verdict)
    return published


@pytest.fixture
def chain(folders):
    return Chain(folders, "c")


def test_links_come_back_in_order_and_whole(chain):
    first = extend(chain, make_link())
    second = extend(chain, make_link(2, first.key, 10, 20))
    assert Chain(chain.folders, "c").links() == [first, second]
    assert second.range == Range(10, 20)
    assert (chain.adapter(second) / "adapter_model.safetensors").is_file()
    assert chain_names(chain.folders) == ["c"]


def test_a_published_link_is_not_in_the_chain_until_it_is_settled_and_is_found_again(chain):
    calls = []
    link = publish(chain, make_link(), calls)
    assert chain.links() == [] and chain.pins() is None
    assert chain.candidate(1, link.title, link.key) == link
    chain.settle(link, PINS, "accepted")
    chain.settle(link, PINS, "accepted")  # as a kill just after the first time does
    assert calls == [1] and chain.links() == [link]


def test_a_damaged_candidate_is_set_aside_and_made_again(chain):
    link = publish(chain, make_link())
    folder = chain.folders.local(f"c/links/0001-sft-0-10-{link.key[:12]}")
    if chain.folders.cache:
        chain.folders.write(f"c/links/{folder.name}/manifest.json", "{}")
    else:
        damage_file(folder / "adapter" / "adapter_model.safetensors", "flip")
    assert chain.candidate(1, link.title, link.key) is None
    assert publish(chain, make_link()) == replace(link, created=chain.candidate(1, link.title, link.key).created)


def test_a_store_that_is_away_for_a_moment_is_not_taken_for_damage(s3_url, tmp_path, monkeypatch):
    link = publish(Chain(open_folders(s3_url, tmp_path / "one"), "c"), make_link())
    chain = Chain(open_folders(s3_url, tmp_path / "another machine"), "c")
    with monkeypatch.context() as patch:
        def away(*_):
            raise ConnectionError("connection reset by peer")

        patch.setattr(chain.folders.fs, "get_file", away)
        for look in (lambda: chain.candidate(1, link.title, link.key), lambda: chain.adapter(link),
                     lambda: ArtifactStore(chain.folders).find("c/links", chain._folder(1, link.title, link.key)[8:])):
            with pytest.raises(StoreError, match="the object store refuses or cannot be reached"):
                look()
    assert chain.candidate(1, link.title, link.key) == link  # nothing was set aside


def test_what_an_ended_link_and_those_that_lost_leave_in_work_goes(chain):
    for key in ("a", "b"):
        chain.folders.publish(f"c/work/{key}/step-00000001", lambda folder: {}, {"stage": "checkpoint"})
    extend(chain, make_link())
    assert chain.folders.children("c/work") == []


def test_the_second_of_two_workers_loses_and_its_link_is_not_in_the_chain(chain):
    other = Chain(chain.folders, "c")
    slow = publish(chain, make_link(key="b" * 64))
    winner = extend(other, make_link(key="a" * 64))
    with pytest.raises(TakenOver, match="another worker has added link 1"):
        chain.settle(slow, PINS, "accepted")
    assert [link.key for link in chain.links()] == [winner.key]


def test_two_workers_that_made_the_same_link_both_have_it(chain):
    other, link = Chain(chain.folders, "c"), make_link()

    def train_while_the_other_finishes(folder):
        extend(other, link)
        return writer(link)(folder)

    mine = chain.publish(1, link.title, link.key, train_while_the_other_finishes)
    chain.settle(mine, PINS, "accepted")
    assert mine == link and chain.links() == [link]


def test_a_skipped_link_keeps_its_place_and_is_nobodys_parent(chain):
    first = extend(chain, make_link())
    skipped = extend(chain, make_link(2, first.key, 10, 20), "skipped")
    third = extend(chain, make_link(3, first.key, 20, 30))
    assert chain.links() == [first, third]
    assert chain.entries()[1] == Entry(skipped, "skipped")
    with pytest.raises(TakenOver, match="another worker has added link 2"):
        chain.settle(skipped, PINS, "accepted")


def test_a_rejected_link_waits_at_the_chains_end_only(chain):
    first = extend(chain, make_link())
    worse = publish(chain, make_link(2, first.key, 10, 20))
    chain.write_record(worse, {"metrics": {"accuracy": 0.1}})
    chain.write_record(worse, {"verdict": "rejected"})
    assert chain.rejected() == [worse] and chain.record(worse)["metrics"] == {"accuracy": 0.1}
    extend(chain, make_link(2, first.key, 10, 20, key="another recipe" + "0" * 50))
    assert chain.rejected() == []


def test_a_chain_pins_what_its_first_link_began_with(chain):
    chain.check_pins(PINS)
    assert chain.pins() is None  # nothing is trained yet: another recipe may still begin it
    extend(chain, make_link())
    chain.check_pins(dict(PINS))
    with pytest.raises(ChainError, match="pins: pool, prompt") as caught:
        chain.check_pins({**PINS, "pool": "other", "prompt": "other"})
    assert "chain=NEW" in caught.value.remedy
    assert chain.pins() == PINS


def test_of_two_first_links_of_different_recipes_one_pins_the_chain(chain):
    slow = publish(chain, make_link(key="b" * 64))
    extend(Chain(chain.folders, "c"), make_link())
    with pytest.raises(ChainError, match="pins: base"):
        chain.settle(slow, {**PINS, "base": "another"}, "accepted")
    assert len(chain.links()) == 1


def test_a_damaged_adapter_is_never_used(tmp_path):
    from mathtune.folders import LocalFolders

    chain = Chain(LocalFolders(tmp_path), "c")
    link = extend(chain, make_link())
    damage_file(chain.adapter(link) / "adapter_model.safetensors", "flip")
    with pytest.raises(StoreError, match="a link of the chain is damaged") as caught:
        chain.adapter(link)
    assert "adapter_model.safetensors" in caught.value.where


@pytest.mark.parametrize("name", ["head-0001", "links/{}/manifest.json"])
def test_a_damaged_head_or_manifest_is_refused(chain, name):
    link = extend(chain, make_link())
    name = f"c/{name}".format(f"0001-sft-0-10-{link.key[:12]}")
    chain.folders.write(name, chain.folders.read(name).replace("sft", "sfx"))
    with pytest.raises(StoreError, match="a link of the chain is damaged"):
        chain.links()


def test_a_chain_that_an_older_version_made_is_not_guessed_at(chain):
    chain.folders.create_once("c/head-0001", "0001-sft-0-10-abc\n")
    with pytest.raises(StoreError, match="the head does not parse") as caught:
        chain.links()
    assert "chain=NEW" in caught.value.remedy


def test_keys_depend_on_parent_kind_and_decisions():
    link = make_link()
    keys = {link_key(None, "sft", {"a": 1}), link_key(link, "sft", {"a": 1}), link_key(None, "grpo", {"a": 1}),
            link_key(None, "sft", {"a": 2}), link_key(replace(link, key="x"), "sft", {"a": 1})}
    assert len(keys) == 5
    assert link_key(None, "sft", {"a": 1, "b": 2}) == link_key(None, "sft", {"b": 2, "a": 1})


def test_disagreements_name_the_fields():
    old = {"sft": {"lr": 1, "seed": 0}, "rows": "a"}
    assert disagreements(old, json.loads(json.dumps(old))) == []
    assert disagreements(old, {"sft": {"lr": 2, "seed": 0}, "rows": "b"}) == ["rows", "sft.lr"]
