"""Word problems for ``leaks_speed.py``: like GSM8K's in length, made of patterns, with copies planted among them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 20_000
PLANTED = 250  # of every kind (near: of every count of exchanged words), in validation and in test rows each
EXCHANGED = range(1, 8)  # words of a near copy that are others than in the original
NAMES = ("Natalia Weng Betty Julie James Mark Albert Ken Alexis Tina Jasper Joy Randy Bella Maddison Tobias Ella Ali Noah "
         "Hannah Mary Jed Trent Mishka Carlos Zion Ines Priya Olu Kofi Wei Sana Igor Marta Luca Freya").split()
THINGS = ("clips pages letters flowers slices coins jars stamps shirts pencils fish buttons eggs chairs tickets marbles apples "
          "cookies books bottles boxes cards lemons muffins tiles candles ribbons cups plants toys").split()
PLACES = ("shop school market farm library garden station bakery office museum beach park kitchen stadium warehouse clinic "
          "theatre harbour orchard workshop").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday April May June summer winter spring".split()
SENTENCES = (
    "{name} bought {n} {thing} at the {place} on {day} for ${n} each.",
    "On {day} {name} sold {n} {thing} to people near the {place}.",
    "{name} has {n} times as many {thing} as {name}, who keeps {n} {thing2} at the {place}.",
    "A box of {thing} costs ${n}, and every {n} boxes come with {n} free {thing2}.",
    "In {day} the {place} gave away {n} {thing} and {n} {thing2} to its visitors.",
    "{name} then lost {n} of the {thing} on the way from the {place} to the {place2}.",
    "Each of the {n} workers at the {place} packs {n} {thing} and {n} {thing2} an hour.",
    "{name} spends {n} minutes a day on {thing} and twice as long on {thing2} after {day}.",
    "The {place} is {n} miles from the {place2}, and {name} drives at {n} miles per hour.",
    "Of these {thing}, {n}% are red, {n} are blue, and the others belong to {name}.",
    "{name} and {name2} share {n} {thing} equally, but {name2} gives {n} of them back.",
    "After {day} there were only {n} {thing} left, so {name} ordered {n} more from the {place}.",
    "{name} earns ${n} an hour at the {place} and pays ${n} a week for {thing}.",
    "Every {n} days the {place} throws {n} old {thing} out and buys {n} new {thing2} for {name}.",
    "{name} reads {n} pages about {thing} on {day} and half as many about {thing2} the day after.",
    "A bag holds {n} {thing}; {name} fills {n} bags before going to the {place}.",
    "{name2} is {n} years older than {name}, who got {n} {thing} as a present on {day}.",
    "If it rains, the {place} closes {n} hours early and sells {n} fewer {thing}.",
    "The price of {thing} at the {place} went up by {n}% and that of {thing2} by ${n}.",
    "{name} walks {n} blocks to the {place}, carrying {n} {thing} and a basket of {thing2}.")
ENDINGS = (
    "How many {thing} does {name} have now?", "How much money, in dollars, did {name} spend altogether?",
    "What is the total number of {thing} and {thing2} at the {place}?", "How many hours does {name} need for all of this?",
    "How many more {thing} than {thing2} are there at the end of {day}?", "How much is left for {name2} after {day}?")
SLOTS = {"name": NAMES, "name2": NAMES, "thing": THINGS, "thing2": THINGS, "place": PLACES, "place2": PLACES, "day": DAYS}


def make_parts(folder: Path, rows: int) -> tuple[list[dict], dict[str, float]]:
    """Writes pool, validation and test as Parquet files of row_id and question.

    Returns:
        what was planted in the pool (kind, part, row, similarity), and figures of the text: mean words, characters in all.
    """
    rng = np.random.default_rng(0)
    parts = {name: make_questions(rng, min(10_000, rows // 10)) for name in ("validation", "test")}
    planted, copies = plant(rng, parts)
    words = chars = row = 0
    left = rows - sum(map(len, parts.values())) - len(copies)
    places = set(rng.choice(left, len(copies), replace=False).tolist())  # copies stand anywhere among the others
    schema = pa.schema([("row_id", pa.int64()), ("question", pa.large_string())])
    with pq.ParquetWriter(folder / "pool.parquet", schema, compression="zstd") as writer:
        for first in range(0, left, BATCH):
            questions = []
            for place, question in enumerate(make_questions(rng, min(BATCH, left - first)), first):
                questions.append(question)
                if place in places:
                    questions.append(copies.pop())
            words, chars = words + sum(len(one.split()) for one in questions), chars + sum(map(len, questions))
            writer.write_table(pa.table([range(row, row + len(questions)), questions], schema=schema))
            row += len(questions)
    for name, questions in parts.items():
        pq.write_table(pa.table([range(len(questions)), questions], schema=schema), folder / f"{name}.parquet")
    return planted, {"words": words / row, "chars": chars}


def make_questions(rng: np.random.Generator, count: int) -> list[str]:
    """Two to four sentences and a question each."""
    made = []
    for _ in range(count):
        chosen = rng.choice(len(SENTENCES), rng.integers(2, 5), replace=False).tolist()
        patterns = [*(SENTENCES[number] for number in chosen), ENDINGS[rng.integers(len(ENDINGS))]]
        people = {slot: words[rng.integers(len(words))] for slot, words in SLOTS.items()}
        made.append(" ".join(_fill(rng, pattern, people) for pattern in patterns))
    return made


def plant(rng: np.random.Generator, parts: dict[str, list[str]]) -> tuple[list[dict], list[str]]:
    """Copies of the first questions of each part, and what they are."""
    planted, copies = [], []
    for part, questions in parts.items():
        row = 0
        for kind, count in [("exact", 0), ("normalised", 0), *(("near", number) for number in EXCHANGED)]:
            for _ in range(min(PLANTED, len(questions) // 20)):
                original = questions[row]
                copy = {"exact": original, "normalised": f" {original.upper()} "}.get(kind) or exchange(rng, original, count)
                planted.append({"kind": kind, "part": part, "row": row, "similarity": similarity(original, copy)})
                copies.append(copy)
                row += 1
    return planted, copies


def exchange(rng: np.random.Generator, question: str, count: int) -> str:
    """The question with some of its words exchanged, one after the other or scattered, by chance."""
    words = question.split()
    for place in rng.choice(len(words), count, replace=False).tolist():
        words[place] = f"{NAMES[rng.integers(len(NAMES))]}'s"
    return " ".join(words)


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the two texts' pairs of words, by Python's sets."""
    pairs = [set(zip(words[:-1], words[1:], strict=True)) for words in (one.lower().split(), other.lower().split())]
    return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])


def _fill(rng: np.random.Generator, pattern: str, people: dict[str, str]) -> str:
    head, *others = pattern.format(**people, n="\0").split("\0")
    return head + "".join(f"{number}{text}" for number, text in zip(rng.integers(2, 1000, len(others)), others, strict=True))
