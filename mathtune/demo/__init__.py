"""What the demo needs and nothing else does: a generator of maths problems and a small base model made from it."""
