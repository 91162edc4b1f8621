"""The command as a person meets it: bad input ends with status 2, a message that helps, and nothing half-written."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from flows import cli, execute
from mathtune.demo.problems import rows


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``mathtune …`` in this process: ``(exit status, standard output, standard error)``."""

    monkeypatch.setattr(execute, "quieten_prefect", lambda: None)  # it would quieten the processes of later tests, too

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mathtune", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        for console in (cli.console, cli.errors):
            monkeypatch.setattr(console, "_width", 200, raising=False)
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = exit_.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def old_signals():
    """Puts the handlers of this process back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("old_signals")
def test_a_closed_terminal_stops_a_run_as_sigterm_does_but_not_under_nohup(tmp_path):
    """Told of it twice, by shell and kernel, the run is stopped once."""
    def hang_up():
        os.kill(os.getpid(), signal.SIGHUP)
        return {"went on": True}

    quiet, events = Console(quiet=True), tmp_path / "events.jsonl"
    with pytest.raises(SystemExit) as stopped:
        execute.supervise(quiet, events, "run", hang_up)
    assert stopped.value.code == 143
    assert hang_up() == {"went on": True}
    events.write_text('{"event": "stopped", "saved": true, "text": ""}\n')
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(SystemExit) as stopped:
        execute.supervise(quiet, events, "run", hang_up)
    assert stopped.value.code == 75
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    assert execute.supervise(quiet, events, "run", hang_up) == {"went on": True}


@pytest.fixture
def write_recipe(recipe_values, tmp_path):
    def write(**changes) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe_values(**changes)))
        return path

    return write


def nothing_half_written(folder: Path) -> bool:
    """No staging folder, no artifact or link without its manifest, no result file."""
    left = [path for path in (folder / "store").rglob("*") if path.name.startswith((".", "staging"))]
    artifacts = [path for path in (folder / "store" / "artifacts").glob("*/*") if not (path / "manifest.json").is_file()]
    results = [path.name for path in (folder / "runs").glob("*/*") if path.name != "executions"]
    chains = [path for path in (folder / "store" / "chains").rglob("*") if path.is_file()]
    return not left and not artifacts and not results and not chains


# --- what is wrong before anything runs ---

@pytest.mark.parametrize(("override", "message"), [
    ("sft.learning_rat=1", "sft.learning_rat: unknown key; did you mean sft.learning_rate?"),
    ("name=a/b", "name: letters, digits"),
    ("name=..", "name: letters, digits"),
    ("chunks.start=500", "start (500) must be below end (192)"),
    ("nonsense", "'nonsense' is not key=value"),
    ("prompt.template=[a", "the value is not YAML"),
    ("prompt.template='{question} {'", "prompt"),
])
def test_a_wrong_recipe(command, write_recipe, tmp_path, override, message):
    status, _, err = command("run", write_recipe(), override)
    assert (status, message in err) == (2, True), err
    assert not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()


def test_a_wrong_command(command):
    status, _, err = command("trian", "recipe.yaml")
    assert status == 2 and "train" in err


def test_a_chain_that_is_not_there(command, tmp_path):
    status, _, err = command("chain", "nope", "--root", tmp_path)
    assert status == 2 and "there is no such chain" in err


def test_help_names_every_command(command):
    status, out, _ = command("--help")
    assert status == 0
    for name in ("run", "train", "evaluate", "submit", "plan", "doctor", "chain", "compare", "sweep"):
        assert name in out


@pytest.mark.parametrize(("name", "described"), [
    ("run", ["RECIPE", "the recipe's YAML"]), ("plan", ["For example: mathtune plan", "the recipe's YAML"]),
    ("evaluate", ["For example: mathtune evaluate", "the recipe's YAML"]),
    ("chain", ["For example: mathtune chain", "the recipe's chain"]),
    ("compare", ["For example: mathtune compare", "what is compared against: RUN, RUN:2", "what is held against it"]),
    ("sweep", ["For example: mathtune sweep", "the sweep's YAML"])])
def test_help_describes_every_argument_and_gives_an_example(command, name, described):
    status, out, _ = command(name, "--help")
    assert status == 0 and not [words for words in described if words not in " ".join(out.split())], out


@pytest.mark.parametrize(("text", "shown"), [
    ("no such thing", "RuntimeError: no such thing\n→ --debug shows where"),
    ("Error(s) in loading:\n" + "\tsize mismatch for layer\n" * 400,
     "RuntimeError: Error(s) in loading:\n→ --debug shows the rest"),
    ("x" * 5000, f"RuntimeError: {'x' * 299}…\n→ --debug shows the rest")])
def test_of_a_long_error_that_is_nobodys_the_first_line_is_shown(command, monkeypatch, text, shown):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(cli.show, "chain_table", fail)
    status, _, err = command("chain", "demo")
    assert (status, err) == (1, f"✗ {shown}\n")


# --- bad data ---

def good_rows(n=400) -> list[dict]:
    return rows("verifier", n, 3, "train").drop_columns(["family"]).to_pylist()


def as_parquet(path: Path, data: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(data), path)
    return path


def missing_column(folder):
    return as_parquet(folder / "rows.parquet", [{k: v for k, v in row.items() if k != "solution"} for row in good_rows()])


def odd_label(folder):
    in_words = [{**row, "is_correct": "yes" if row["is_correct"] else "no"} for row in good_rows()]
    return as_parquet(folder / "rows.parquet", in_words)


def one_class(folder):
    return as_parquet(folder / "rows.parquet", [row for row in good_rows() if row["is_correct"]])


def too_few(folder):
    return as_parquet(folder / "rows.parquet", good_rows(60))


def empty_file(folder):
    (folder / "rows.jsonl").write_bytes(b"")
    return folder / "rows.jsonl"


def half_a_parquet(folder):
    path = as_parquet(folder / "rows.parquet", good_rows())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def unclosed_quote(folder):
    lines = ["question,answer,solution,is_correct", *(f'"How much is 1 + {i}?",2,"1 + 1 = 2",True' for i in range(300))]
    lines[200] = '"How much is 1 + 1?,2,"1 + 1 = 2",True'
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return folder / "rows.csv"


def no_file(folder):
    return folder / "nowhere.parquet"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("make", "message"), [
    (missing_column, "solution"), (odd_label, "source.label_values"), (one_class, "labelled false"),
    (too_few, "100 rows asked for"),
    (empty_file, "rows.jsonl"), (half_a_parquet, "rows.parquet"), (unclosed_quote, "rows.csv"), (no_file, "nowhere.parquet"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_bad_data(command, write_recipe, tmp_path, make, message):
    source = {"path": str(make(tmp_path)), "holdout": 20, "columns": {"label": "is_correct"}}
    recipe = write_recipe(source=source, validation={"rows": 100})
    status, _, err = command("run", recipe)
    assert status == 2, err
    assert message in err and "Traceback" not in err
    assert nothing_half_written(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_labels_in_words_are_mapped_where_the_recipe_says_so(command, write_recipe, tmp_path):
    source = {"path": str(odd_label(tmp_path)), "holdout": 20, "columns": {"label": "is_correct"},
              "label_values": {"yes": True, "no": False}}
    # training needs no more than to be reached: the range asked for does not exist
    status, _, err = command("train", write_recipe(source=source), "--start", "100000", "--end", "100001")
    assert status == 2 and "beyond the pool" in err


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("changes", "arguments", "message"), [
    ({"chunks": {"size": 96, "end": 99_999}}, ["run"], "beyond the pool"),
    ({}, ["train", "--start", "5", "--end", "5"], "holds no rows"),
    ({}, ["train"], "give its start and end, or how many of the next rows"),
    ({"validation": {"rows": 590}}, ["run"], "590"),
    ({"lora": {"targets": ["no_such_proj"]}}, ["run"], "no_such_proj"),
], ids=["range beyond the pool", "start = end", "no range", "too much validation", "no such target"])
def test_bad_ranges(command, write_recipe, tmp_path, changes, arguments, message):
    verb, *rest = arguments
    status, _, err = command(verb, write_recipe(**changes), *rest)
    assert status == 2 and message in err, err
    assert not list((tmp_path / "store" / "chains").rglob("*.json"))  # a mended recipe finds nothing that it must obey


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_bad_models(command, write_recipe, tiny_base, tmp_path):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    status, _, err = command("run", write_recipe(), f"model.base={folder}")
    assert status == 2 and "the model folder has no tokenizer" in err and str(folder) in err
    status, _, err = command("run", write_recipe(), "prompt.labels.true=' 1'", "prompt.labels.false=' 1 2'")
    assert status == 2 and "begin with the same token" in err
    assert nothing_half_written(tmp_path)


@pytest.mark.parametrize("verb", [["run"], ["train", "--next", "32"]])
def test_a_rejected_link_is_accepted_or_skipped_not_both(command, write_recipe, verb):
    status, _, err = command(verb[0], write_recipe(), *verb[1:], "--accept", "--skip")
    assert status == 2 and "contradict" in err


def test_a_prefect_server_that_does_not_answer_is_named_with_what_to_do(command, write_recipe, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        status, _, err = command("run", write_recipe())
    assert status == 1 and "Failed to reach API" in err and "python -m deployments.server" in err


# --- what works ---

@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_run_plan_chain(command, write_recipe, tmp_path):
    recipe = write_recipe(sft={"learning_rate": 1e-4, "examples_per_step": 16})
    status, out, _ = command("plan", recipe)
    assert status == 0 and "to do" in out and "known once the data stages are done" in out
    status, out, err = command("run", recipe)
    assert status == 0, err
    assert "95% interval" in out and str(tmp_path / "runs" / "small" / "report.html") in out
    status, out, _ = command("run", recipe)
    assert status == 0 and out.count("(served)") == 13  # every stage but the look at the base
    status, out, _ = command("plan", recipe)
    assert status == 0 and "to do" not in out and "tokens    " in out
    assert "step      16 examples: packs of up to" in out
    status, out, _ = command("plan", recipe, "chunks.end=288")
    assert status == 0 and "train-chunk[192:288)" in out and "rows/s so far" in out
    status, out, _ = command("chain", "small", "--root", tmp_path / "store")
    assert status == 0 and "[96:192)" in out
    status, _, err = command("run", recipe, "sft.learning_rate=1e-3")
    assert status == 2 and "sft.learning_rate" in err and "chain=NEW" in err
    metrics = json.loads((tmp_path / "runs" / "small" / "metrics.json").read_text())
    assert len(metrics["links"]) == 2


@pytest.mark.slow
def test_doctor_finds_this_machine_fit(command):
    status, out, _ = command("doctor")
    assert "NF4" in out and "forward and backward pass run" in out
    assert status == (1 if "✗" in out else 0)
