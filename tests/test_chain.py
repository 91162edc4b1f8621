"""A chain's links are immutable, in order, and extended by one worker only."""

import json
from dataclasses import replace

import pytest

from mathtune.chain import Chain, Link, disagreements, link_key
from mathtune.errors import ChainError, StoreError
from mathtune.ranges import Range

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


def extend(chain, link, calls=None):
    return chain.extend(link.number, link.title, link.key, PINS, writer(link, calls))


def test_links_come_back_in_order_and_whole(tmp_path):
    chain = Chain(tmp_path, "c")
    first = extend(chain, make_link())
    second = extend(chain, make_link(2, first.key, 10, 20))
    assert Chain(tmp_path, "c").links() == [first, second]
    assert second.range == Range(10, 20)
    assert (chain.adapter(second) / "adapter_model.safetensors").is_file()


def test_a_link_killed_before_it_was_accepted_is_accepted_and_not_trained_again(tmp_path):
    chain, calls = Chain(tmp_path, "c"), []
    extend(chain, make_link(), calls)
    (tmp_path / "c" / "head-0001").unlink()  # as a kill between the two leaves it
    assert chain.links() == []
    extend(chain, make_link(), calls)
    assert calls == [1] and len(chain.links()) == 1


def test_the_second_of_two_workers_loses_and_its_link_is_not_in_the_chain(tmp_path):
    one, other = Chain(tmp_path, "c"), Chain(tmp_path, "c")
    winner = make_link(key="a" * 64)

    def train_while_the_other_finishes(folder):
        extend(other, winner)
        return writer(make_link(key="b" * 64))(folder)

    with pytest.raises(ChainError, match="another worker has added link 1"):
        one.extend(1, "sft[0:10)", "b" * 64, PINS, train_while_the_other_finishes)
    assert [link.key for link in one.links()] == [winner.key]


def test_two_workers_that_made_the_same_link_both_have_it(tmp_path):
    one, other, link = Chain(tmp_path, "c"), Chain(tmp_path, "c"), make_link()

    def train_while_the_other_finishes(folder):
        extend(other, link)
        return writer(link)(folder)

    assert one.extend(1, link.title, link.key, PINS, train_while_the_other_finishes) == link
    assert one.links() == [link]


def test_a_chain_pins_what_its_first_link_began_with(tmp_path):
    chain = Chain(tmp_path, "c")
    chain.check_pins(PINS)
    assert chain.pins() is None  # nothing is trained yet: another recipe may still begin it
    extend(chain, make_link())
    chain.check_pins(dict(PINS))
    with pytest.raises(ChainError, match="pins: pool, prompt") as caught:
        chain.check_pins({**PINS, "pool": "other", "prompt": "other"})
    assert "chain=NEW" in caught.value.remedy
    assert chain.pins() == PINS


def test_of_two_first_links_of_different_recipes_one_pins_the_chain(tmp_path):
    one, other = Chain(tmp_path, "c"), Chain(tmp_path, "c")

    def train_while_the_other_finishes(folder):
        extend(other, make_link())
        return writer(make_link(key="b" * 64))(folder)

    with pytest.raises(ChainError, match="pins: base"):
        one.extend(1, "sft[0:10)", "b" * 64, {**PINS, "base": "another"}, train_while_the_other_finishes)
    assert len(one.links()) == 1


def test_a_damaged_link_is_never_used(tmp_path):
    chain = Chain(tmp_path, "c")
    link = extend(chain, make_link())
    (chain.adapter(link) / "adapter_model.safetensors").write_bytes(b"x" * len(link.key))
    with pytest.raises(StoreError, match="a link of the chain is damaged") as caught:
        chain.links()
    assert "adapter_model.safetensors" in caught.value.where


def test_what_is_learned_later_lies_beside_the_link(tmp_path):
    chain = Chain(tmp_path, "c")
    link = extend(chain, make_link())
    assert chain.record(link) == {}
    chain.write_record(link, {"metrics": {"accuracy": 0.5}})
    assert chain.record(link)["metrics"]["accuracy"] == 0.5
    assert chain.links() == [link]


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
