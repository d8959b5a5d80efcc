"""What the docs say runs: doctests, paths, commands, imports and messages of all pages.

Links between pages, headings and the notebooks themselves are checked by ``make docs``.
"""

import ast
import doctest
import importlib
import itertools
import re
import shlex
from pathlib import Path

import jax
import pytest
from paths import ROOT

from experiments.late_settings import parse_value, set_late
from experiments.workloads import read_run

DOCS = ROOT / "docs"
README = ROOT / "README.md"
CELL = "{code-cell} ipython3"
PAGES = sorted(
    [README, ROOT / "CONTRIBUTING.md"]
    + [p for p in DOCS.rglob("*.md") if "_build" not in p.parts]
)


def every_page(test):
    """Runs a test, which takes ``page``, of each page."""
    names = [str(p.relative_to(ROOT)) for p in PAGES]
    return pytest.mark.parametrize("page", PAGES, ids=names)(test)


def documented():
    """Modules of the package whose docstrings hold examples."""
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "meta_opt").rglob("*.py")
        if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)
    )


@pytest.mark.parametrize("name", documented())
def test_doctests(name):
    module = importlib.import_module(name)
    source = Path(module.__file__).read_text()
    if ("learned_optimizer(num_steps" in source) and not shipped():
        pytest.skip("the example uses the shipped weights, which are not there yet")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0 and result.failed == 0


def shipped():
    from meta_opt.optimizers.weights import DEFAULT, available

    return DEFAULT in available()


def code(text):
    """Fenced blocks as (language, body), and what stands in single backticks."""
    blocks = re.findall(r"^```([^`\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return blocks, re.findall(r"`([^`\n]+)`", rest)


def python_of(text):
    """The Python of a page, its fenced blocks or a notebook's cells."""
    blocks, _ = code(text)
    found = [b for language, b in blocks if language in ("python", CELL)]
    return [re.sub(r"\A(:.*\n)+", "", body) for body in found]  # A cell's options.


def commands(text):
    """Shell lines of a page, without prompts and comments."""
    blocks, inline = code(text)
    lines = [
        line.removeprefix("$ ").strip()
        for language, body in blocks
        if language in ("", "sh", "bash", "shell", "console")
        for line in body.replace("\\\n", " ").splitlines()
    ]
    started = ("make ", "python ", "python3 ", ".venv/bin/", "./")
    return [x for x in lines + inline if x.startswith(started)]


def targets():
    makefile = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))


def missing_parts(command):
    """Words of a command that name something which is not there."""
    words = shlex.split(command, comments=True)
    wrong = []
    if words[0] == "make":
        asked = [x for x in words[1:] if re.fullmatch(r"[a-z][\w-]*", x)]
        wrong += [x for x in asked if x not in targets()]
    for flag, word in itertools.pairwise(words):
        if flag == "-m" and word.split(".")[0] in ("meta_opt", "experiments"):
            path = ROOT.joinpath(*word.split("."))
            if not (path.with_suffix(".py").is_file() or path.is_dir()):
                wrong.append(word)
    for word in words:
        path = word.split("=")[-1].split(":")[0]
        named = r"((experiments|configs|tests|meta_opt|docs)/|\./)[\w/.-]+"
        # What `make data` writes is not there before.
        if re.fullmatch(named, path) and path != "./data":
            wrong += [] if (ROOT / path).exists() else [path]
        if variant := re.fullmatch(r"(?:.*=)?configs/(\w+)\.py:(\w+)", word):
            wrong += missing_variant(*variant.groups())
    return wrong or wrong_settings(words)


def wrong_settings(words):
    """What is wrong with a command's settings of its config."""
    named = (re.fullmatch(r"(?:.*=)?configs/(\w+)\.py(?::(\w+))?", x) for x in words)
    found = next((x.groups() for x in named if x), None)
    given = [re.fullmatch(r"--config\.([\w.]+)=(.*)", word) for word in words]
    settings = {x[1]: x[2] for x in given if x}
    if found is None or not settings:
        return []
    get_config = importlib.import_module(f"configs.{found[0]}").get_config
    config = get_config(*found[1:] if found[1] else ())
    if not any("finetune" in word for word in words[:3]):
        return [key for key in settings if not has_section(config, key)]
    with config.unlocked():
        set_late(config, {key: parse_value(v) for key, v in settings.items()})
    try:
        read_run(config.to_dict())
    except ValueError as error:
        return [str(error)]
    return []


def has_section(config, key):
    """Whether a config has the section that a setting is in."""
    for part in key.split(".")[:-1]:
        if not hasattr(config, "get") or (config := config.get(part)) is None:
            return False
    return True


def missing_variant(module, variant):
    """The variant of a config file, if it has none of that name."""
    if not (ROOT / "configs" / f"{module}.py").is_file():
        return []  # Said of its path.
    try:
        importlib.import_module(f"configs.{module}").get_config(variant)
    except ValueError:
        return [f"{module}:{variant}"]
    return []


def missing_paths(text, folder=ROOT):
    """Paths in backticks, and links from a page in ``folder``, that do not exist."""
    _, inline = code(text)
    links = re.findall(r"\]\(([^)#\s]+)\)", text)
    links = [x for x in links if "://" not in x and not x.startswith("mailto:")]
    missing = [x for x in links if not (folder / x).exists()]
    named = []
    top = "meta_opt|experiments|configs|tests|docs|benchmarks"
    for x in inline:
        path = re.fullmatch(rf"(({top})(/[\w.-]+)*/?(?:\.\w+)?)(:[\w,=]*)?", x)
        # What `make docs` writes is not there before.
        if path and "/" in x and not x.startswith("docs/_build"):
            named.append(path.group(1))
        elif re.fullmatch(r"[\w-]+\.(md|toml|txt)", x):
            named.append(x)
    return missing + [x for x in named if not (ROOT / x).exists()]


@every_page
def test_commands_exist(page):
    wrong = {c: missing_parts(c) for c in commands(page.read_text())}
    assert not {c: parts for c, parts in wrong.items() if parts}


@every_page
def test_paths_exist(page):
    assert missing_paths(page.read_text(), page.parent) == []


def missing_names(body):
    """Names of the package that Python code takes and that are not there."""
    import meta_opt

    wrong = []
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("meta_opt"):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                if not hasattr(module, name):
                    try:
                        importlib.import_module(f"{node.module}.{name}")
                    except ModuleNotFoundError:
                        wrong.append(f"{node.module}.{name}")
    for name in re.findall(r"\bmeta_opt\.(\w+)", body):
        place = ROOT / "meta_opt" / name
        if name not in meta_opt.__all__ and not place.is_dir():
            wrong += [] if place.with_suffix(".py").is_file() else [f"meta_opt.{name}"]
    return wrong


@every_page
def test_python_compiles_and_takes_what_is_there(page):
    for body in python_of(page.read_text()):
        assert missing_names(body) == []


@every_page
def test_no_conflict_of_a_merge_is_left(page):
    assert not re.search(r"^(<{7}|={7}$|>{7})", page.read_text(), re.MULTILINE)


def test_the_readme_is_short_and_lists_every_guide():
    text = README.read_text()
    assert len(text.splitlines()) <= 160
    wrappers = {"index", "changelog", "contributing", "security"}
    guides = [p for p in DOCS.glob("*.md") if p.stem not in wrappers]
    guides += (DOCS / "notebooks").glob("*.md")
    missing = [p for p in guides if f"({p.relative_to(ROOT)})" not in text]
    assert not missing


def test_the_api_reference_has_all_that_is_public():
    text = "".join(p.read_text() for p in sorted((DOCS / "api").glob("*.md")))
    pattern = r"automodule:: ([\w.]+)\n +:members:(.*)"
    listed = dict(re.findall(pattern, text))
    for path in (ROOT / "meta_opt").rglob("*.py"):
        if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            assert listed.get(name.removesuffix(".__init__")) == "", name
    for name, members in listed.items():
        module = importlib.import_module(name)
        for member in filter(None, re.split(r",? ", members)):
            assert hasattr(module, member), f"{name}.{member}"


def test_messages_of_the_page_on_troubleshooting_exist():
    """Each message of its tables, in the parts around what varies."""
    folders = [ROOT / "meta_opt", ROOT / "experiments", ROOT / "configs"]
    source = "\n".join(
        p.read_text() for folder in folders for p in sorted(folder.rglob("*.py"))
    )
    # Literals that are one text, and what is filled in, which is `…` on the page.
    source = re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)
    page = (DOCS / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| (`+)(.+?)\1 \|", page, re.MULTILINE)
    assert len(messages) > 30
    parts = [part.strip() for _, m in messages for part in m.split("…")]
    assert [part for part in parts if part not in source] == []


def test_files_that_are_pages_of_the_site_exist():
    text = (DOCS / "conf.py").read_text()
    (table,) = re.findall(r"^PAGES = (\{.*?^\})", text, re.MULTILINE | re.DOTALL)
    for file, page in ast.literal_eval(table).items():
        assert (ROOT / file).is_file() and file in (DOCS / page).read_text(), file


def test_the_page_on_the_optimizer_runs(tmp_path, monkeypatch):
    page = ROOT / "docs" / "optimizer.md"
    monkeypatch.chdir(tmp_path)
    blocks, _ = code(page.read_text())
    names = {}
    with jax.numpy_rank_promotion("allow"):
        for language, body in blocks:
            assert language == "python"
            exec(compile(body, str(page), "exec"), names)
    assert (tmp_path / "diagnostics.png").is_file()


def test_the_page_on_finetuning_runs(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "finetuning.md"
    monkeypatch.chdir(tmp_path)
    (body,) = python_of(page.read_text())
    with jax.numpy_rank_promotion("allow"):
        exec(compile(body, str(page), "exec"), {})
    assert "'validation/accuracy': 0.9" in capsys.readouterr().out
    assert (tmp_path / "runs" / "mine" / "checkpoints").is_dir()


@pytest.mark.slow
def test_the_page_on_losses_runs(capsys):
    page = ROOT / "docs" / "losses.md"
    (body,) = python_of(page.read_text())
    with jax.numpy_rank_promotion("allow"):
        exec(compile(body, str(page), "exec"), {})
    assert "'meta/alignment/rebuilt'" in capsys.readouterr().out


def test_the_page_on_the_stress_test_runs(tmp_path, monkeypatch):
    page = ROOT / "docs" / "stress.md"
    monkeypatch.chdir(tmp_path)
    names = {}
    for body in python_of(page.read_text()):
        exec(compile(body, str(page), "exec"), names)
    assert names["right"] == "boat" and len(names["four_each"]) == 12
    assert (names["wrong_fifth"] != names["labels"]).sum() == 12
    assert "resnet50" in (tmp_path / "report" / "stress.md").read_text()


def test_makefile_commands_exist():
    """The Makefile runs modules that are there."""
    text = (ROOT / "Makefile").read_text()
    for module in re.findall(r"-m ((?:meta_opt|experiments)[\w.]*)", text):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or path.is_dir(), module


def test_the_checks_themselves():
    text = (
        "Run `make demo` and `make demos`.\n"
        "```sh\n$ python experiments/finetune.py --config configs/none.py:small\n"
        "python -m meta_opt.data.nowhere\n```\n"
        "See [design](docs/none.md), `meta_opt/types.py` and `meta_opt/nothing.py`.\n"
        "`python -m experiments.finetune --config configs/finetune.py:smoked`\n"
        "`python -m experiments.finetune --config configs/finetune.py:smoke "
        "--config.loop.eval_every=3 --config.lop.eval_every=3`\n"
        "```{code-cell} ipython3\nfrom meta_opt.types import Bunch, Batch\n"
        "meta_opt.learned(3)\n```\n"
    )
    wrong = [x for c in commands(text) for x in missing_parts(c)]
    *wrong, setting = wrong
    assert wrong == [
        *("configs/none.py", "meta_opt.data.nowhere", "demos", "finetune:smoked")
    ]
    assert setting.startswith("config has no setting 'lop'; did you mean 'loop'?")
    (cell,) = python_of(text)
    assert missing_names(cell) == ["meta_opt.types.Bunch", "meta_opt.learned"]
    assert missing_paths(text) == ["docs/none.md", "meta_opt/nothing.py"]
