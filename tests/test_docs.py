"""What the docs say runs: doctests, and every path and command of the README."""

import doctest
import importlib
import itertools
import re
import shlex
from pathlib import Path

import jax
import pytest
from paths import ROOT

README = ROOT / "README.md"


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


def readme():
    if not README.is_file():
        pytest.skip("no README yet")
    return README.read_text()


def code(text):
    """Fenced blocks as (language, body), and what stands in single backticks."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return blocks, re.findall(r"`([^`\n]+)`", rest)


def commands(text):
    """Shell lines of the README, without prompts and comments."""
    blocks, inline = code(text)
    lines = [
        line.removeprefix("$ ").strip()
        for language, body in blocks
        if language in ("", "sh", "bash", "shell", "console")
        for line in body.replace("\\\n", " ").splitlines()
    ]
    started = ("make ", "python ", "python3 ", ".venv/bin/")
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
        if re.fullmatch(r"(experiments|configs|tests|meta_opt|docs)/[\w/.-]+", path):
            wrong += [] if (ROOT / path).exists() else [path]
    return wrong


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
        if path and "/" in x:
            named.append(path.group(1))
        elif re.fullmatch(r"[\w-]+\.(md|toml|txt)", x):
            named.append(x)
    return missing + [x for x in named if not (ROOT / x).exists()]


def test_readme_commands_exist():
    wrong = {c: missing_parts(c) for c in commands(readme())}
    assert not {c: parts for c, parts in wrong.items() if parts}


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_paths_of_the_docs_exist(name):
    page = ROOT / "docs" / name
    assert missing_paths(page.read_text(), page.parent) == []


def test_readme_paths_exist():
    assert missing_paths(readme()) == []


def test_readme_python_compiles_and_names_what_is_public():
    import meta_opt

    blocks, _ = code(readme())
    for language, body in blocks:
        if language != "python":
            continue
        compile(body, "README.md", "exec")
        for name in re.findall(r"\bmeta_opt\.(\w+)", body):
            is_module = (ROOT / "meta_opt" / name).is_dir()
            is_file = (ROOT / "meta_opt" / f"{name}.py").is_file()
            assert name in meta_opt.__all__ or is_module or is_file, name


def test_the_page_on_the_optimizer_runs(tmp_path, monkeypatch):
    page = ROOT / "docs" / "optimizer.md"
    assert missing_paths(page.read_text(), page.parent) == []
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
    assert missing_paths(page.read_text(), page.parent) == []
    monkeypatch.chdir(tmp_path)
    ((language, body),), _ = code(page.read_text())
    assert language == "python"
    with jax.numpy_rank_promotion("allow"):
        exec(compile(body, str(page), "exec"), {})
    assert "'validation/accuracy': 0.9" in capsys.readouterr().out
    assert (tmp_path / "runs" / "mine" / "checkpoints").is_dir()


def test_the_page_on_losses_runs(capsys):
    page = ROOT / "docs" / "losses.md"
    assert missing_paths(page.read_text(), page.parent) == []
    ((language, body),), _ = code(page.read_text())
    assert language == "python"
    with jax.numpy_rank_promotion("allow"):
        exec(compile(body, str(page), "exec"), {})
    assert "'meta/alignment/rebuilt'" in capsys.readouterr().out


def test_the_page_on_the_stress_test_runs(tmp_path, monkeypatch):
    page = ROOT / "docs" / "stress.md"
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, body in code(page.read_text())[0]:
        if language == "python":
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
    )
    wrong = [x for c in commands(text) for x in missing_parts(c)]
    assert wrong == ["configs/none.py", "meta_opt.data.nowhere", "demos"]
    assert missing_paths(text) == ["docs/none.md", "meta_opt/nothing.py"]
