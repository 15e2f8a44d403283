"""The documentation: complete, and true.

Every block of Python in it runs. A block titled "needs a hub" runs on small models that lie where the hub's would be, one titled
"needs several ranks" with a single one.
"""

from __future__ import annotations

import argparse
import ast
import doctest
import importlib
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import distributed

import cornstarch_core
from cornstarch_core import cli, errors, hookspecs, specs
from cornstarch_core.plugins import reset_registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SOURCES = [
    *sorted((ROOT / "cornstarch_core").rglob("*.py")),
    *sorted(file for plugin in PLUGINS for file in (plugin / "src").rglob("*.py")),
]

NEEDS = re.compile(r"needs (a hub( and a GPU)?|several ranks)")
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    """A file as tests are named after it."""
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    """A file's text."""
    return path.read_text(encoding="utf-8")


# --- reading pages ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its language, title, code and line."""

    language: str
    title: str
    code: str
    line: int


def blocks(path: Path) -> list[Block]:
    """Every fenced block that names its language."""
    text = read(path)
    return [Block(m[1], m[2] or "", m[3], text.count("\n", 0, m.start()) + 1) for m in BLOCK.finditer(text)]


def prose(path: Path) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```$", "", read(path), flags=re.MULTILINE | re.DOTALL)


def rows(path: Path, heading: str) -> dict[str, list[str]]:
    """The table whose first column has this heading: its other cells, by the code in the first one."""
    lines = read(path).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *others = (cell.strip() for cell in line.strip("|").split(" | "))
        found[first.strip("` ")] = others
    return found


# --- everything is documented -----------------------------------------------------------------------------------------


def hooks() -> list[str]:
    """The hooks that there are."""
    return [name for name in hookspecs.__all__ if name.startswith("cornstarch_")]


def signature(hook: str) -> str:
    """A hook's first line, as it stands in its module."""
    tree = ast.parse(read(Path(hookspecs.__file__)))
    node = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == hook)
    return f"def {hook}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


@pytest.mark.parametrize("hook", hooks())
def test_every_hook_is_documented_with_its_exact_arguments(hook):
    """It has a section, which holds its signature."""
    section = re.search(rf"^### {hook}$(.*?)(?=^##|\Z)", read(DOCS / "plugins.md"), re.MULTILINE | re.DOTALL)
    assert section, f"docs/plugins.md has no section {hook}"
    assert f"\n{signature(hook)}\n" in section[1]


def test_no_hook_is_documented_that_is_not_there():
    """A section for each hook, and for nothing else that looks like one."""
    found = re.findall(r"^### (cornstarch_\w+)$", read(DOCS / "plugins.md"), re.MULTILINE)
    assert sorted(found) == sorted(hooks())


def test_targets_are_documented_with_their_signatures():
    """The table in the docs is the one in specs.py."""
    table = re.findall(r"^``(\w+Spec\.\w+)``\s+``([^`]+)``", specs.__doc__, re.MULTILINE)
    assert table
    documented = {name: cells[0] for name, cells in rows(DOCS / "plugins.md", "Field").items()}
    assert documented.keys() == {name for name, _ in table}
    for name, expected in table:
        assert documented[name].startswith(f"`{expected}`")


@pytest.mark.parametrize("name", cornstarch_core.__all__)
def test_every_public_name_is_in_the_reference(name):
    """So the page shows its docstring."""
    assert f"\n::: cornstarch_core.{name}\n" in read(DOCS / "reference.md")


def test_the_reference_holds_only_what_is_there():
    """Every entry can be imported."""
    for target in re.findall(r"^::: (\S+)$", read(DOCS / "reference.md"), re.MULTILINE):
        module, _, attribute = target.rpartition(".")
        parent = importlib.import_module(module)
        assert hasattr(parent, attribute) or importlib.import_module(target)


def test_every_environment_variable_is_documented():
    """Those of the code are those in the table."""
    used = {name for file in SOURCES for name in re.findall(r"CORNSTARCH_[A-Z_]+", read(file))}
    assert used == rows(DOCS / "plugins.md", "Variable").keys()


def commands(parser: argparse.ArgumentParser, name: str = "cornstarch") -> Iterator[str]:
    """Every command, and every option of one."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in nested:
        for word, child in action.choices.items():
            yield from commands(child, f"{name} {word}")
    if not nested:
        yield name
    for action in parser._actions:
        if action.option_strings and "--help" not in action.option_strings:
            yield f"{name} {action.option_strings[-1]}"
        elif not action.option_strings and action not in nested:
            yield f"{name} {action.metavar}"


def test_every_command_and_option_is_documented():
    """Those of the parser are those in the table, with or without values."""
    documented = rows(DOCS / "plugins.md", "Command")
    for command in commands(cli._parser()):
        *words, last = command.split()
        assert any(line.split()[: len(words)] == words and last in line.split() for line in documented), command
    known = {word for command in commands(cli._parser()) for word in command.split()} | {"SECONDS", "M", "FOLDER"}
    for line in documented:
        assert set(line.split()) <= known, line


def test_every_error_is_documented_with_its_remedy():
    """The table has a row for each, in the order of the tree, and says what to do."""
    documented = rows(DOCS / "errors.md", "Error")
    assert sorted(documented) == errors.__all__
    assert all(when and remedy for when, remedy in documented.values())
    tree = re.findall(r"\w+Error", errors.__doc__.partition("Each message")[0].replace("LookupError", ""))
    assert list(documented) == [name for name in tree if name in errors.__all__]


def test_the_readme_lists_the_plugins_that_there_are():
    """No more and no fewer."""
    listed = re.findall(r"^\| \[([\w-]+)\]\(plugins/\1/README\.md\)", read(ROOT / "README.md"), re.MULTILINE)
    assert listed == [plugin.name for plugin in PLUGINS]


def test_the_navigation_lists_every_page():
    """A page that it lacks would not be found."""
    listed = re.findall(r": (\S+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_continuous_integration_calls_the_test_command_of_the_readme():
    """What users are told is what is tried."""
    assert re.search(r"^make test\b", read(ROOT / "README.md"), re.MULTILINE)
    assert re.search(r"^make test$", read(ROOT / ".ci" / "run"), re.MULTILINE)


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The headings of a page, as links write them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_internal_links_resolve(page):
    """To a file of the repository and, if there is one, to a heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = page.parent / file if file else page
        assert place.exists(), f"{name_of(page)}: {target}"
        assert DOCS not in page.parents or DOCS in place.resolve().parents, f"{target} is not among the pages"
        assert not anchor or anchor in anchors(place), f"{name_of(page)}: {target}"


# --- examples run -----------------------------------------------------------------------------------------------------


def tokenizer():
    """One that knows every byte, with the special tokens and a chat template after Llama 3.1's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|finetune_right_pad_id|>",
    ]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    model = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=special[0],
        eos_token=special[1],
        extra_special_tokens=special[2:],
        chat_template=(
            "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
            "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
            "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
        ),
    )


@pytest.fixture
def rank(monkeypatch):
    """The environment in which torchrun starts its processes, for one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Small models in folders that are named as the checkpoints in the docs are, below the current folder."""
    import numpy as np
    import soundfile
    import sounds
    import tiny
    from transformers import WhisperModel

    monkeypatch.chdir(tmp_path)
    sizes = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "vocab_size": 60}
    WhisperModel(sounds.whisper(**sizes).config).save_pretrained("openai/whisper-large-v3")
    soundfile.write("bark.wav", np.zeros(44_100, np.float32), 44_100)
    tiny.clip().save_pretrained("openai/clip-vit-large-patch14-336")
    tiny.llama(vocab_size=300).save_pretrained("meta-llama/Llama-3.1-8B-Instruct")
    tokenizer().save_pretrained("meta-llama/Llama-3.1-8B-Instruct")


def install_from(page: Path, folder: Path) -> None:
    """Write the files that a page shows, and make a distribution of its ``pyproject.toml``."""
    files = {block.title: block.code for block in blocks(page) if Path(block.title).suffix in (".py", ".toml")}
    for name, code in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    if "pyproject.toml" not in files:
        return
    text = files["pyproject.toml"]
    name, version, needs = (
        re.search(rf'^{key} = (?:\[)?"(.+?)"', text, re.MULTILINE)[1] for key in ("name", "version", "dependencies")
    )
    entry = re.search(r'entry-points\."cornstarch.plugins"\]\n(\w+) = "(.+)"', text)
    info = folder / "src" / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {needs}\n")
    (info / "entry_points.txt").write_text(f"[cornstarch.plugins]\n{entry[1]} = {entry[2]}\n")


@pytest.fixture
def installed(request, tmp_path, monkeypatch):
    """The plugin that a page shows, installed for as long as the test runs."""
    install_from(request.getfixturevalue("page"), tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    reset_registry()
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    reset_registry()


def runnable(page: Path) -> list[Block]:
    """The blocks of Python that are no file of their own."""
    return [block for block in blocks(page) if block.language == "python" and not block.title.endswith(".py")]


WITH_EXAMPLES = [
    page for page in (*PAGES, *(plugin / "README.md" for plugin in PLUGINS)) if page.exists() and runnable(page)
]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
@pytest.mark.usefixtures("hub", "installed", "rank")
def test_every_example_of_a_page_runs(page):
    """In one namespace, from top to bottom; offline, and on small models where it needs a hub."""
    namespace = {"__name__": "__main__"}
    for block in runnable(page):
        assert not block.title or NEEDS.fullmatch(block.title), f"{name_of(page)}:{block.line}: {block.title}"
        code = "\n" * block.line + block.code  # so that a traceback tells the line of the page
        exec(compile(code, str(page), "exec"), namespace)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("page", [DOCS / "plugins.md"], ids=name_of)
def test_the_tests_that_a_page_shows_pass(page, tmp_path):
    """The plugin of the tutorial comes with a test, and it is one that passes."""
    file = next(block for block in blocks(page) if block.title.startswith("tests/"))
    namespace = {}
    exec(compile(file.code, file.title, "exec"), namespace)
    tests = [value for name, value in namespace.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_plugin_of_the_tutorial_is_light(tmp_path):
    """Its module imports no torch, as the page says; the core's own test shows how that is measured."""
    install_from(DOCS / "plugins.md", tmp_path)
    tree = ast.parse(read(tmp_path / "src" / "cornstarch_series" / "plugin.py"))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert imported == ["cornstarch_core.hookspecs", "cornstarch_core.specs"]


WITH_DOCTESTS = [file for file in SOURCES if ">>>" in read(file)]


@pytest.mark.parametrize("file", WITH_DOCTESTS, ids=name_of)
def test_every_example_of_a_docstring_runs(file, tmp_path, monkeypatch):
    """And prints what it says."""
    monkeypatch.chdir(tmp_path)
    parts = file.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts[parts.index("src") + 1 :] if "src" in parts else parts))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed
