"""Families of bare calculations: little or no story around the numbers. Each takes a ``Draw`` and gives a ``Problem``.

Ranges are chosen so that a model of a million parameters can learn the arithmetic: sums below 2,000, products of a
number below 100 with one below 13, divisions that undo such products.
"""

from mathtune.demo.draw import Draw
from mathtune.demo.problem import R0, R1, R2, Problem
from mathtune.demo.words import NAMES, UNITS


def addition(draw: Draw) -> Problem:
    """Sums of two or three numbers, with carries."""
    a, b = draw.between(11, 899), draw.between(11, 899)
    if draw.chance(70):
        question = draw.pick((f"What is {a} + {b}?", f"Add {a} and {b}.", f"Find the sum of {a} and {b}.",
                              f"How much is {a} plus {b}?"))
        return Problem("addition", question, ((a, "+", b),))
    c = draw.between(2, 99)
    question = draw.pick((f"What is {a} + {b} + {c}?", f"Add {a}, {b} and {c}.", f"Find the sum of {a}, {b} and {c}."))
    return Problem("addition", question, ((a, "+", b), (R0, "+", c)))


def subtraction(draw: Draw) -> Problem:
    """Differences, with borrowing."""
    a, b = draw.between(11, 899), draw.between(11, 599)
    a += b
    question = draw.pick((f"What is {a} - {b}?", f"Subtract {b} from {a}.", f"How much is {a} minus {b}?",
                          f"How much more is {a} than {b}?", f"Take {b} away from {a}."))
    return Problem("subtraction", question, ((a, "-", b),))


def multiplication(draw: Draw) -> Problem:
    """Products, some with a third number to add."""
    a, b = draw.between(3, 99), draw.between(2, 12)
    if draw.chance(40):
        question = draw.pick((f"What is {a} * {b}?", f"Multiply {a} by {b}.", f"How much is {a} times {b}?",
                              f"Find the product of {a} and {b}."))
        return Problem("multiplication", question, ((a, "*", b),))
    c = draw.between(2, 199)
    question = draw.pick((f"What is {a} * {b} + {c}?", f"Multiply {a} by {b} and add {c}.",
                          f"Add {c} to the product of {a} and {b}."))
    return Problem("multiplication", question, ((a, "*", b), (R0, "+", c)))


def division(draw: Draw) -> Problem:
    """Divisions without remainder, some with a number to take away afterwards."""
    quotient, b = draw.between(3, 99), draw.between(2, 12)
    a = quotient * b
    if draw.chance(40):
        question = draw.pick((f"What is {a} / {b}?", f"Divide {a} by {b}.", f"How many times does {b} go into {a}?"))
        return Problem("division", question, ((a, "/", b),))
    c = draw.between(1, 199)
    question = draw.pick((f"What is {a} / {b} + {c}?", f"Divide {a} by {b} and add {c}.",
                          f"Add {c} to the quotient of {a} and {b}."))
    return Problem("division", question, ((a, "/", b), (R0, "+", c)))


def equations(draw: Draw) -> Problem:
    """Linear equations in one unknown."""
    x, a, b = draw.between(2, 60), draw.between(2, 12), draw.between(1, 99)
    letter = draw.pick(("x", "y", "n"))
    opening, end = draw.pick((("Solve", ""), (f"Find {letter}:", ""), ("If", f", what is {letter}?")))
    if draw.chance(50) or a * x <= b:
        return Problem("equations", f"{opening} {a} * {letter} + {b} = {a * x + b}{end or '.'}",
                       ((a * x + b, "-", b), (R0, "/", a)))
    return Problem("equations", f"{opening} {a} * {letter} - {b} = {a * x - b}{end or '.'}",
                   ((a * x - b, "+", b), (R0, "/", a)))


def conversion(draw: Draw) -> Problem:
    """A quantity in a large and a small unit, wanted in the small one."""
    large, small, factor = draw.pick(UNITS)
    many, rest = draw.between(2, 30), draw.between(1, factor - 1)
    name = draw.pick(NAMES)
    question = draw.pick((f"How many {small} are {many} {large} and {rest} {small}?",
                          f"Write {many} {large} and {rest} {small} in {small}.",
                          f"{name} needs {many} {large} and {rest} {small}. How many {small} is that?"))
    return Problem("conversion", question, ((many, "*", factor), (R0, "+", rest)), small)


def averages(draw: Draw) -> Problem:
    """The mean of three numbers."""
    mean, a, b = draw.between(5, 95), draw.between(1, 99), draw.between(1, 99)
    c = 3 * mean - a - b
    if not 1 <= c <= 99:
        return averages(draw)
    question = draw.pick((f"What is the average of {a}, {b} and {c}?", f"Find the mean of {a}, {b} and {c}.",
                          f"{draw.pick(NAMES)} scores {a}, {b} and {c} points. What is the average score?"))
    return Problem("averages", question, ((a, "+", b), (R0, "+", c), (R1, "/", 3)))


def time(draw: Draw) -> Problem:
    """Minutes between two times of one day."""
    start, hours = draw.between(1, 12), draw.between(1, 8)
    first, last = 5 * draw.between(0, 11), 5 * draw.between(0, 11)
    name, thing = draw.pick(NAMES), draw.pick(("film", "train ride", "lesson", "game", "walk", "party"))
    begin, end = f"{start}:{first:02d}", f"{start + hours}:{last:02d}"
    question = draw.pick((f"How many minutes are there from {begin} to {end}?",
                          f"A {thing} starts at {begin} and ends at {end}. How many minutes does it take?",
                          f"{name} works from {begin} to {end}. How many minutes is that?"))
    return Problem("time", question, ((start + hours, "-", start), (R0, "*", 60), (R1, "+", last), (R2, "-", first)),
                   "minutes")


def geometry(draw: Draw) -> Problem:
    """Perimeter and area of a rectangle, perimeter of a square."""
    long, wide, name = draw.between(3, 99), draw.between(2, 12), draw.pick(NAMES)
    unit = draw.pick(("meters", "feet", "inches"))
    shape = draw.pick(("garden", "room", "field", "yard", "rectangle", "wall"))
    sides = draw.pick((f"A {shape} is {long} {unit} long and {wide} {unit} wide.",
                       f"{name} has a {shape} of {long} by {wide} {unit}."))
    if draw.chance(50):
        question = f"{sides} How many {unit} is its perimeter?"
        return Problem("geometry", question, ((long, "+", wide), (R0, "*", 2)), unit)
    return Problem("geometry", f"{sides} How many square {unit} is its area?", ((long, "*", wide),))


def sequences(draw: Draw) -> Problem:
    """Held out: a later member of an arithmetic sequence."""
    first, gap, place = draw.between(1, 60), draw.between(2, 12), draw.between(5, 40)
    shown = f"{first}, {first + gap}, {first + 2 * gap}"
    question = draw.pick((f"A row of numbers begins {shown}. What is number {place} in the row?",
                          f"The numbers {shown} go on in the same way. What is number {place}?"))
    return Problem("sequences", question, ((place, "-", 1), (R0, "*", gap), (R1, "+", first)))
