"""The names and things that problems are about, and the words of prompts: short words, each of them one token."""

NAMES = ("Mia", "Tom", "Ben", "Ana", "Leo", "Eva", "Sam", "Zoe", "Max", "Ida", "Noah", "Lily",
         "Omar", "Ruth", "Ivan", "Nora", "Paul", "Jane", "Amir", "Lena")
THINGS = ("apples", "books", "pens", "stamps", "coins", "cards", "shells", "eggs", "balls", "stickers",
          "beads", "plums", "nuts", "roses", "cookies", "marbles")
GOODS = ("pen", "cake", "book", "toy", "mug", "ball", "lamp", "ticket", "scarf", "card")
BOXES = ("boxes", "bags", "baskets", "jars", "crates", "packs")
COLOURS = ("red", "blue", "green", "white", "black", "yellow")

# (large unit, small unit, how many small ones it has)
UNITS = (("hours", "minutes", 60), ("minutes", "seconds", 60), ("weeks", "days", 7), ("days", "hours", 24),
         ("feet", "inches", 12), ("years", "months", 12), ("meters", "centimeters", 100), ("yards", "feet", 3))

# What somebody who mixes up the unit writes instead.
WRONG_UNITS = {"minutes": "hours", "seconds": "minutes", "days": "weeks", "hours": "minutes", "inches": "feet",
               "months": "years", "centimeters": "meters", "feet": "inches", "km": "hours", "dollars": "cents",
               "years": "months", "meters": "centimeters", "pages": "minutes"}

# What prompts say around a problem. A base has seen such words, in no order that means anything (see ``corpus``): a
# token it has never seen would keep its small random vectors, and no adapter could make it say that token.
PROMPT_WORDS = (
    "True False true false Question Problem Solution Working Answer Proposed Correct Is Are The the You Solve Check "
    "Give Think Reply Write Right Wrong a an and are as answer answers be by correct exactly final following for if "
    "in is it line math maths of on one or only problem problems proposed question reply right should solution solve "
    "step steps student teacher that this to whether with word working wrong you your system user assistant").split()
