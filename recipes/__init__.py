"""The recipes that ship with the project."""
