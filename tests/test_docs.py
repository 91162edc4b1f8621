"""The documentation names nothing that is not there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_the_fault_table_names_exists():
    named = set(re.findall(r"\b(tests/\w+\.py)::(\w+)", (ROOT / "docs" / "faults.md").read_text()))
    assert named
    for file in {file for file, _ in named}:
        tree = ast.parse((ROOT / file).read_text())
        there = {(file, node.name) for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {pair for pair in named if pair[0] == file} <= there
