"""The tutorial for plugin authors: whoever does what the page says sees what it says, and writes no more than it says."""

from __future__ import annotations

import re

import pytest
from pages import DOCS, blocks, read
from scaffolded import names_in, new, python
from smoke.tutorial import main, steps

PAGE = read(DOCS / "tutorials" / "write-a-plugin.md")
MOST = 80
PYTEST = ("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", "not auto_mappings")
"""One check, which starts a process with transformers in it, is left to smoke tests for the time that it takes."""


def summary(text: str) -> dict[str, int]:
    """What pytest's last line counts."""
    line = re.findall(r"^.*\d+ passed.* in [\d.]+s.*$", text, re.MULTILINE)[-1]
    return {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped)", line)}


def with_one_more(counted: dict[str, int]) -> dict[str, int]:
    """The check that is left out here would pass."""
    return {**counted, "passed": counted["passed"] + 1}


def test_the_reader_writes_no_more_than_the_page_says():
    """Fewer than so many lines that are not blank, those of tests and of the readme included."""
    assert f"fewer than {MOST} lines" in PAGE
    assert sum(step.own_lines for step in steps(PAGE)) < MOST


@pytest.mark.slow
def test_whoever_follows_the_page_sees_one_check_fail_and_then_all_pass(tmp_path):
    """With the very message that the page shows, and with as many checks as it counts."""
    project = new(tmp_path, names_in(PAGE))
    first, red, green = (block.code for block in blocks(PAGE) if block.language == "text" and " passed" in block.code)
    untouched = python([project], project, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")
    assert f"{summary(first)['passed']} tests collected" in untouched

    until = PAGE.index(red)
    for step in (step for step in steps(PAGE) if step.start < until):
        step.apply(project)
    out = python([project], project, *PYTEST, code=1)
    *message, _ = red.splitlines()
    assert "\n".join(message) in out
    assert with_one_more(summary(out)) == summary(red)

    for step in (step for step in steps(PAGE) if step.start > until):
        step.apply(project)
    assert with_one_more(summary(python([project], project, *PYTEST))) == summary(green)


def test_own_lines_are_those_that_are_written_or_put_in_the_place_of_others():
    """Blank ones are none, nor are those that go."""
    whole, change = steps(
        '```python title="a.py"\nx = 1\n\ny = 2\n```\n```diff title="a.py"\n-x = 1\n+x = 2\n+\n+z = 3\n```\n'
    )
    assert (whole.own_lines, change.own_lines) == (2, 2)
    assert change.changed("x = 1\ny = 2\n") == "x = 2\n\nz = 3\ny = 2\n"


def test_a_change_of_lines_that_are_not_there_or_twice_is_refused():
    """The page would tell the reader to change what cannot be found."""
    (change,) = steps('```diff title="a.py"\n-x = 1\n+x = 2\n```\n')
    for text, times in (("y = 1\n", 0), ("max = 1\n", 0), ("x = 1\nx = 1\n", 2)):
        with pytest.raises(ValueError, match=f"a.py holds these lines {times} times, not once:\nx = 1"):
            change.changed(text)
    assert change.changed("max = 1\nx = 1\n") == "max = 1\nx = 2\n"


@pytest.mark.parametrize("code", ["+x = 2\n", "-x = 1\n+x = 2\n\n+y = 3\n", " z = 0\n-x = 1\n"])
def test_lines_that_a_change_puts_nowhere_are_refused(code):
    """The reader would not know where they belong, and they would be counted but not written."""
    (change,) = steps(f'```diff title="a.py"\n{code}```\n')
    with pytest.raises(ValueError, match="a.py is to be changed, but these lines stand in the place of no others"):
        change.changed("x = 1\n")


def test_a_page_that_has_its_reader_write_too_much_fails(tmp_path, monkeypatch):
    """As many lines as the limit are too many."""
    page = tmp_path / "page.md"
    page.write_text('```python title="a.py"\nx = 1\n\ny = 2\n```\n')
    monkeypatch.setattr("sys.argv", ["tutorial.py", str(page), str(tmp_path), "--fewer-than", "3"])
    main()
    assert (tmp_path / "a.py").read_text() == "x = 1\n\ny = 2\n"
    monkeypatch.setattr("sys.argv", ["tutorial.py", str(page), str(tmp_path), "--fewer-than", "2"])
    with pytest.raises(SystemExit, match="its reader writes 2 lines; there have to be fewer than 2"):
        main()
