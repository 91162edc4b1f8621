"""Families of word problems: people and things, one to four steps. Each takes a ``Draw`` and gives a ``Problem``."""

from decimal import Decimal

from mathtune.demo.draw import Draw
from mathtune.demo.problem import R0, R1, Problem
from mathtune.demo.words import BOXES, COLOURS, GOODS, NAMES, THINGS


def money(draw: Draw) -> Problem:
    """Prices in dollars and cents, with or without change."""
    price = Decimal(5 * draw.between(5, 99)).scaleb(-2)
    many, name, good = draw.between(2, 9), draw.pick(NAMES), draw.pick(GOODS)
    bought = draw.pick((f"A {good} costs ${price}. {name} buys {many}.",
                        f"{name} buys {many} {good}s at ${price} each."))
    if draw.chance(50):
        question = f"{bought} How many dollars does {name} pay?"
        return Problem("money", question, ((price, "*", many),), "dollars")
    paid = Decimal(1000 * (1 + int(price * many) // 10)).scaleb(-2)
    question = f"{bought} {name} pays with ${paid}. How many dollars are left?"
    return Problem("money", question, ((price, "*", many), (paid, "-", R0)), "dollars")


def rates(draw: Draw) -> Problem:
    """So much an hour, minute or day: how much in all, or how long."""
    speed, long, name = draw.between(3, 99), draw.between(2, 12), draw.pick(NAMES)
    who, verb, what, unit = draw.pick((
        (f"{name}'s car", "goes", "km", "hours"), (f"{name}'s printer", "prints", "pages", "minutes"),
        (name, "reads", "pages", "days"), (name, "makes", draw.pick(THINGS), "hours"),
        ("A train", "goes", "km", "hours"), ("A factory", "makes", draw.pick(THINGS), "days")))
    each = f"{who} {verb} {speed} {what} in 1 {unit[:-1]}."
    if draw.chance(50):
        return Problem("rates", f"{each} How many {what} is that in {long} {unit}?", ((speed, "*", long),),
                       what if what in ("km", "pages") else "")
    return Problem("rates", f"{each} How many {unit} are needed for {speed * long} {what}?",
                   ((speed * long, "/", speed),), unit)


def fractions(draw: Draw) -> Problem:
    """A fraction of a number, taken or left."""
    bottom = draw.between(2, 12)
    top, part = draw.between(1, bottom - 1), draw.between(2, 60)
    whole, name, thing = bottom * part, draw.pick(NAMES), draw.pick(THINGS)
    taken = ((whole, "/", bottom), (R0, "*", top))
    if draw.chance(40):
        question = draw.pick((f"What is {top}/{bottom} of {whole}?", f"Find {top}/{bottom} of {whole} {thing}."))
        return Problem("fractions", question, taken)
    story = draw.pick((f"{name} has {whole} {thing} and gives away {top}/{bottom} of them.",
                       f"Of {name}'s {whole} {thing}, {top}/{bottom} are sold."))
    if draw.chance(50):
        return Problem("fractions", f"{story} How many {thing} is that?", taken)
    return Problem("fractions", f"{story} How many {thing} are left?", (*taken, (whole, "-", R1)))


def percentages(draw: Draw) -> Problem:
    """A percentage of a number, taken, left or added."""
    tens, tenth = draw.between(1, 9), draw.between(2, 90)
    whole, name, thing = 10 * tenth, draw.pick(NAMES), draw.pick(THINGS)
    taken = ((whole, "/", 10), (R0, "*", tens))
    ending = draw.below(3)
    if ending == 0:
        question = draw.pick((f"What is {tens}0% of {whole}?", f"Find {tens}0% of {whole} {thing}."))
        return Problem("percentages", question, taken)
    if ending == 1:
        question = f"{name} has {whole} {thing} and loses {tens}0% of them. How many {thing} are left?"
        return Problem("percentages", question, (*taken, (whole, "-", R1)))
    question = f"{name} has {whole} {thing} and gets {tens}0% more. How many {thing} is that now?"
    return Problem("percentages", question, (*taken, (whole, "+", R1)))


def ages(draw: Draw) -> Problem:
    """How old somebody is, was or will be."""
    young, old = draw.two(NAMES)
    age, times, years = draw.between(4, 18), draw.between(2, 5), draw.between(2, 20)
    known = draw.pick((f"{young} is {age} years old. {old} is {times} times as old.",
                       f"{young} is {age}. {old} is {times} times as old as {young}."))
    if draw.chance(50) or age * times <= years:
        return Problem("ages", f"{known} How many years old is {old} in {years} years?",
                       ((age, "*", times), (R0, "+", years)), "years")
    return Problem("ages", f"{known} How many years old was {old} {years} years ago?",
                   ((age, "*", times), (R0, "-", years)), "years")


def sharing(draw: Draw) -> Problem:
    """What is left over when things are shared out."""
    people, each = draw.between(3, 12), draw.between(2, 30)
    rest = draw.between(1, people - 1)
    whole, name, thing, box = people * each + rest, draw.pick(NAMES), draw.pick(THINGS), draw.pick(BOXES)
    question = draw.pick((f"{name} shares {whole} {thing} equally among {people} friends.",
                          f"{name} puts {whole} {thing} equally into {people} {box}."))
    return Problem("sharing", f"{question} How many {thing} are left over?", ((people, "*", each), (whole, "-", R0)))


def ratios(draw: Draw) -> Problem:
    """One part of a ratio from the other part or from the whole."""
    one, two = draw.two(COLOURS)
    a, b, unit, thing = draw.between(2, 9), draw.between(2, 9), draw.between(2, 40), draw.pick(THINGS)
    known = draw.pick((f"The ratio of {one} to {two} {thing} is {a}:{b}.",
                       f"{draw.pick(NAMES)} has {one} and {two} {thing} in the ratio {a}:{b}."))
    if draw.chance(50):
        return Problem("ratios", f"{known} There are {a * unit} {one} {thing}. How many are {two}?",
                       ((a * unit, "/", a), (R0, "*", b)))
    return Problem("ratios", f"{known} There are {(a + b) * unit} in all. How many are {two}?",
                   ((a, "+", b), ((a + b) * unit, "/", R0), (R1, "*", b)))


def two_steps(draw: Draw) -> Problem:
    """Gains and losses, one after the other."""
    name, friend = draw.two(NAMES)
    thing, a, b, c = draw.pick(THINGS), draw.between(20, 399), draw.between(11, 299), draw.between(2, 19)
    kind = draw.below(3)
    if kind == 0:
        return Problem("two_steps", f"{name} has {a} {thing}, buys {b} more and gives {c} to {friend}. "
                       f"How many {thing} does {name} have now?", ((a, "+", b), (R0, "-", c)))
    if kind == 1:
        return Problem("two_steps", f"{name} has {a} {thing} and {friend} has {b} more than {name}. "
                       f"How many {thing} do they have together?", ((a, "+", b), (R0, "+", a)))
    return Problem("two_steps", f"{name} has {a + b} {thing}, loses {b} and then finds {c}. "
                   f"How many {thing} does {name} have now?", ((a + b, "-", b), (R0, "+", c)))


def three_steps(draw: Draw) -> Problem:
    """Boxes of things, then gains and losses."""
    name, friend = draw.two(NAMES)
    thing, box = draw.pick(THINGS), draw.pick(BOXES)
    a, b, c, e = draw.between(3, 60), draw.between(2, 12), draw.between(2, 99), draw.between(2, 12)
    packed = f"{name} has {b} {box} of {a} {thing}"
    if draw.chance(50):
        gone = draw.between(1, min(a * b + c - 1, 99))
        return Problem("three_steps", f"{packed}, gets {c} more and gives {gone} to {friend}. "
                       f"How many {thing} does {name} have now?", ((a, "*", b), (R0, "+", c), (R1, "-", gone)))
    return Problem("three_steps", f"{packed} and {friend} has {e} {box} of {c} {thing}. "
                   f"How many {thing} do they have together?", ((a, "*", b), (c, "*", e), (R0, "+", R1)))


def workers(draw: Draw) -> Problem:
    """Held out: the same work by more or fewer hands (inverse proportion)."""
    many, other = draw.between(2, 12), draw.between(2, 12)
    if many == other:
        return workers(draw)
    hours = other * draw.between(1, 8)
    who, work = draw.pick((("pumps", "fill a pool"), ("painters", "paint a house"), ("cooks", "bake the cakes"),
                           ("robots", "build a car"), ("farmers", "plow a field")))
    unit, boss = draw.pick(("hours", "days", "minutes")), draw.pick(NAMES)
    question = draw.pick((f"For {boss}, {many} {who} {work} in {hours} {unit}. How many {unit} do {other} {who} need?",
                          f"{boss} knows that {many} {who} need {hours} {unit} to {work}. "
                          f"How many {unit} do {other} {who} take?"))
    return Problem("workers", question, ((many, "*", hours), (R0, "/", other)), unit)
