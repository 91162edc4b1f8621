"""The names and things that problems are about: common short English words, so that each becomes one token."""

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
