"""Schedules as files: the actions of several segments in one text, read back and compared.

The text is that of `schedule.render.render_actions`, segment after segment, with a blank line
between them: `weft show schedule RECIPE --actions > FILE` writes it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import unified_diff

from weft.errors import ProgramError
from weft.graph.program import Program, verify
from weft.schedule.action import Ordered
from weft.schedule.render import parse
from weft.schedule.sequence import starts

_TITLE = re.compile(r"^(\S+): \d+ actions$")
_LEADING = re.compile(r"^ *\d+  ")
_MANY = 3  # lines of context in a comparison, as diff has them


def sections(text: str) -> Mapping[str, str]:
    """The text of each segment, by its name.

    Raises:
        ProgramError: text before the first title, or a segment twice.
    """
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        title = _TITLE.match(line)
        if title is None and not found and line.strip():
            raise ProgramError(
                f"found {line.strip()!r}, expected a title as in moe.forward: 91 actions"
            )
        if title is not None:
            if title.group(1) in found:
                raise ProgramError(f"found the segment {title.group(1)} twice, expected it once")
            lines = found.setdefault(title.group(1), [])
        lines.append(line)
    return {name: "\n".join(lines).strip() for name, lines in found.items()}


def restored(text: str, program: Program) -> Ordered:
    """The order that a segment's text stands for; its collectives are issued as the text has them.

    Raises:
        ProgramError: the text names what the program does not have.
    """
    ordered = parse(text, program)
    first = starts(ordered)
    names = {task.name for task in first}
    others = tuple(task for task in program.tasks if task.name not in names)
    return replace(ordered, program=verify(replace(program, tasks=(*first, *others))))


def compare(one: str, other: str) -> Iterator[str]:
    """The lines in which two saved schedules differ, segment by segment; nothing where they agree.
    Numbers and frees follow from the rest and are not compared.
    """
    ours, theirs = sections(one), sections(other)
    for name in dict.fromkeys((*ours, *theirs)):
        if name not in ours or name not in theirs:
            yield f"{name}: only in the {'first' if name in ours else 'second'}"
            continue
        before, behind = _essence(ours[name]), _essence(theirs[name])
        if before == behind:
            continue
        yield f"{name}:"
        for line in list(unified_diff(before, behind, lineterm="", n=_MANY))[2:]:
            yield f"  {line}"


def _essence(text: str) -> list[str]:
    lines = [_LEADING.sub("", line).rstrip() for line in text.splitlines()[1:] if line.strip()]
    return [line for line in lines if not line.startswith("free")]
