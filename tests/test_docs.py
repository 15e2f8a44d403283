"""The documentation is true: its links lead somewhere, and every block of Python in it runs.

A block titled "needs the Hugging Face Hub" runs on small models in folders that have the names of the checkpoints. A block
titled "needs several processes" runs in a single one. A block titled with the name of a file is that file of a plugin. A text
right below a block that prints is what the block prints, and a block of the page raises the messages of errors, unless their
title is "not raised by the examples". test_docs_complete.py tests whether the documentation is complete.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import re
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT, SOURCES, Block, anchors, blocks, name_of, prose, read
from scaffolded import install_from
from torch import distributed

from cornstarch_core.plugins import reset_registry

LANGUAGES = {"console", "diff", "json", "markdown", "python", "text", "toml", "yaml"}
"""Those of blocks. Python has one name only, since what is called otherwise would not be run."""

NEEDS = re.compile(r"needs (the Hugging Face Hub( and a GPU)?|several processes)")
FILE = re.compile(r"[\w./-]+\.\w+")
NOT_RAISED = "not raised by the examples"
"""The title of a block of messages that no block of its page raises."""

PYTHON = re.compile(r"^(import \w|from [\w.]+ import |assert )", re.MULTILINE)
"""What only stands in Python: such a block would have to run, so it has to be called Python."""

OF_THE_ENVIRONMENT = DOCS / "compatibility.md"
"""The page that prints which plugins are installed."""

BY_HAND = DOCS / "how-to" / "plugin-by-hand.md"
WITH_FILES = [
    ROOT / "CONTRIBUTING.md",
    BY_HAND,
    DOCS / "how-to" / "test-a-plugin.md",
    DOCS / "tutorials" / "write-a-plugin.md",
]
"""Pages that show files: plugins/test_add_a_hook.py, this file, testing/test_own_plugins.py and test_tutorial.py run them."""


# --- blocks and links -------------------------------------------------------------------------------------------------


def block_problems(text: str) -> list[str]:
    """Blocks of a page that name no language, or one that is not known here, or have a title that means nothing."""
    problems = []
    for block in blocks(text):
        where = f"line {block.line}"
        if block.language not in LANGUAGES:
            problems.append(f"{where}: the language is {block.language!r}, not one of {', '.join(sorted(LANGUAGES))}")
        means = NEEDS.fullmatch(block.title) if block.language == "python" else block.title == NOT_RAISED
        if block.title and not means and not FILE.fullmatch(block.title):
            problems.append(f"{where}: {block.title!r} is neither a file nor what a block can need")
        if block.language != "python" and PYTHON.search(block.code):
            problems.append(f"{where}: this is Python, which would not be run as {block.language!r}")
    return problems


def link_problems(text: str, page: Path) -> list[str]:
    """Links of a page that lead to no file of the repository, or to no heading in it; from the site, also out of it."""
    problems = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        if not place.exists():
            problems.append(f"{target}: there is no such file")
        elif DOCS in page.parents and DOCS not in place.parents:
            problems.append(f"{target} is not among the pages")
        elif anchor and anchor not in anchors(text if place == page else read(place)):
            problems.append(f"{target}: there is no such heading")
    return problems


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_its_language_and_has_a_title_that_means_something(page):
    """So that none of Python is taken for something else, and is not run."""
    assert block_problems(read(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_internal_links_resolve(page):
    """To a file of the repository and, if there is one, to a heading in it."""
    assert link_problems(read(page), page) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\nx\n```\n", "line 1: the language is '', not one of console, "),
        ("a\n\n```py\nx\n```\n", "line 3: the language is 'py'"),
        ('```python title="needs a nap"\nx\n```\n', "line 1: 'needs a nap' is neither"),
        (
            '- a\n\n  ```text title="needs several processes"\n  x\n  ```\n',
            "line 3: 'needs several processes' is neither",
        ),
        ('```python title="not raised by the examples"\nx\n```\n', "line 1: 'not raised by the examples' is neither"),
        ("```console\nimport torch\n```\n", "line 1: this is Python, which would not be run as 'console'"),
        ("```text\nx = 1\nassert x\n```\n", "line 1: this is Python, which would not be run as 'text'"),
        ("```text\nfrom a.b import c\n```\n", "line 1: this is Python, which would not be run as 'text'"),
    ],
)
def test_a_block_that_would_not_be_run_is_seen(text, problem):
    """Without a language, with another name of Python's, with a title that is misspelt, in a list, called something else."""
    (found,) = block_problems(text)
    assert found.startswith(problem)
    fine = '```python title="needs the Hugging Face Hub"\nx\n```\n\n```toml title="a/b.toml"\n```\n\n```text\nfrom one to the next\n```\n'
    assert block_problems(fine) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [("```python\nx\n", "the block of line 1 is not closed"), ("```python {1}\nx\n```\n", "line 1 says 'python {1}'")],
)
def test_a_block_that_cannot_be_read_is_refused(text, problem):
    """It would swallow others, or be passed over."""
    with pytest.raises(ValueError, match=re.escape(problem)):
        blocks(text)


def test_a_link_that_leads_nowhere_is_seen():
    """To no page, to no heading, out of the site."""
    text = "# One\n[a](no.md) [b](#two) [c](hooks.md#no-such) [d](../README.md) [e](#one) [f](hooks.md#targets) [g](https://h)"
    assert link_problems(text, DOCS / "index.md") == [
        "no.md: there is no such file",
        "#two: there is no such heading",
        "hooks.md#no-such: there is no such heading",
        "../README.md is not among the pages",
    ]


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
    for name, pad in (
        ("meta-llama/Llama-3.1-8B-Instruct", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "<|eot_id|>"),
    ):
        tiny.llama(vocab_size=300).save_pretrained(name)
        words = tokenizer()
        words.pad_token = pad  # Llama's has none
        words.save_pretrained(name)


@pytest.fixture
def installed(request, tmp_path, monkeypatch):
    """The plugin that a page shows, installed for as long as the test runs."""
    install_from(request.getfixturevalue("page"), tmp_path / "plugin")
    monkeypatch.syspath_prepend(str(tmp_path / "plugin" / "src"))
    reset_registry()
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    reset_registry()


def runnable(page: Path) -> list[Block]:
    """The blocks of Python that are no file of their own."""
    return [block for block in blocks(read(page)) if block.language == "python" and not FILE.fullmatch(block.title)]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name_of)
@pytest.mark.usefixtures("hub", "installed", "rank")
def test_every_example_of_a_page_runs(page):
    """In one namespace, from top to bottom; offline, on small models where it needs the Hub. It prints and raises what is shown."""
    printed, raised = run(page)
    if page != OF_THE_ENVIRONMENT:
        assert print_problems(read(page), printed) == []
    assert message_problems(read(page), raised) == []


def run(page: Path) -> tuple[dict[int, str], list[str]]:
    """Run the blocks of a page: what each prints, by its line, and the messages that the page's own ``said`` told."""
    namespace = {"__name__": "__main__"}
    printed: dict[int, str] = {}
    raised: list[str] = []
    for block in runnable(page):
        code = "\n" * block.line + block.code  # so that a traceback tells the line of the page
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(code, str(page), "exec"), namespace)
        printed[block.line] = out.getvalue()
        if "def said(" in block.code:
            namespace["said"] = noted(namespace["said"], raised)
    return printed, raised


def noted(said: Callable[[Callable], str], messages: list[str]) -> Callable[[Callable], str]:
    """A page's helper that tells what a function raises; each message is also put into the list."""

    def telling(function: Callable) -> str:
        messages.append(said(function))
        return messages[-1]

    return telling


def shown_as(shown: str, real: str, any_fractions: bool = False) -> bool:
    """Whether a text is as a page shows it, however it is spaced: ``…`` stands for anything, and a fraction for any, if told."""
    pattern = re.escape(" ".join(shown.split())).replace("…", ".*")
    if any_fractions:  # losses differ a little between machines
        pattern = re.sub(r"\d+\\\.\d+(?:e\\?-\d+)?", r"[0-9.e-]+", pattern)
    return re.fullmatch(pattern, " ".join(real.split())) is not None


def message_problems(text: str, raised: list[str]) -> list[str]:
    """Messages that a page shows as raised, but that none of its blocks raised."""
    shown = [block.code for block in blocks(text) if block.language == "text" and block.title != NOT_RAISED]
    messages = [one for code in shown for one in code.split("\n\n") if re.match(r"\w+Error: ", one)]
    return [one for one in messages if not any(shown_as(one, real) for real in raised)]


def print_problems(text: str, printed: dict[int, str]) -> list[str]:
    """Blocks whose output a page shows right below them, but that printed something else at the end."""
    problems = []
    for block, below in pairwise(blocks(text)):
        follows = below.line == block.line + block.code.count("\n") + 3  # the closing fence, an empty line
        prints = "print(" in block.code and block.line in printed
        if follows and prints and below.language == "text" and not below.title:
            lines = len(below.code.splitlines())
            real = "\n".join(printed[block.line].splitlines()[-lines:])  # a Trainer's log may stand before
            if not shown_as(below.code, real, any_fractions=True):
                problems.append(f"line {below.line} shows\n{below.code}but line {block.line} printed\n{real}")
    return problems


def test_a_message_that_no_block_raises_is_seen():
    """Whatever its line breaks; what is said not to be raised here is passed over, and so are other texts."""
    text = "```text\nAError: one,\n… three.\n\nBError: x\n```\n\n```text\nCError of old\n```\n"
    other = '```text title="not raised by the examples"\nDError: y\n```\n'
    assert message_problems(text + other, ["AError: one, two, three.", "BError: x"]) == []
    assert message_problems("```text\nAError: 0.1\n```\n", ["AError: 0.2"]) == ["AError: 0.1\n"]
    assert message_problems(text, ["AError: one, two, four.", "BError: x, y"]) == [
        "AError: one,\n… three.",
        "BError: x\n",
    ]


def test_what_a_page_notes_is_what_its_helper_told():
    """In the order of the calls, and the page gets it all the same."""
    messages = []
    told = noted(lambda function: f"said {function()}", messages)
    assert [told(lambda: 1), told(lambda: 2)] == messages == ["said 1", "said 2"]


def test_an_output_that_is_not_what_is_shown_below_is_seen():
    """Words and whole numbers have to be the same, fractions need not; what was printed before is passed over."""
    text = "```python\nprint(x)\n```\n\n```text\nloss 0.5 of 12 …\n```\n\n```text\nnothing\n```\n"
    assert print_problems(text, {1: "log\nloss 0.25 of 12 steps\n"}) == []
    assert print_problems(text, {}) == []  # it is a file, and not run
    for printed in ("", "loss 0.5 of 13 steps\n", "lost 0.5 of 12 steps\n"):
        (problem,) = print_problems(text, {1: printed})
        assert problem.startswith("line 5 shows\nloss 0.5 of 12 …\nbut line 1 printed\n")


def test_files_are_shown_on_pages_where_somebody_tries_them_out():
    """Elsewhere a block of Python with the name of a file would not be run."""
    shown = [page for page in PAGES if any(block.title.endswith(".py") for block in blocks(read(page)))]
    assert shown == [page for page in PAGES if page in WITH_FILES]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("page", [BY_HAND], ids=name_of)
def test_the_tests_that_a_page_shows_pass(page):
    """The plugin that is written by hand comes with a test, and it is one that passes."""
    file = next(block for block in blocks(read(page)) if block.title.startswith("tests/"))
    namespace = {}
    exec(compile(file.code, file.title, "exec"), namespace)
    tests = [value for name, value in namespace.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_plugin_that_is_written_by_hand_is_light(tmp_path):
    """Its module imports no torch, as the page says; the core's own test shows how that is measured."""
    install_from(BY_HAND, tmp_path)
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
