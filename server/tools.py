"""The tools of a request body, and a body without those that are to be forgotten.

A target of kind `tool` is matched by name and meaning in `tools`, before the prompt is rendered. What it matches is
taken out of the request; every other tool stays as it is. All that the definitions of tools may look like on the
routes that take any is known here: functions, flat or nested, Anthropic's tools, namespaces of tools.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from guard.context import RequestContext
from guard.detection.tools import Tool
from guard.errors import BadRequest
from guard.types import Match

Judge = Callable[[Sequence[Tool], RequestContext], Awaitable[Sequence[Sequence[Match]]]]
"""The enforced targets of kind `tool` that each tool matches."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A definition at `path` of the body's `tools`, and the names by which `tool_choice` may call for it."""

    path: tuple[int, ...]
    names: frozenset[str]
    tool: Tool


async def withhold(body: dict[str, Any], context: RequestContext, judge: Judge) -> dict[str, Any]:
    """`body` without the tools that match a target, which `context` then tells; `body` itself where none does.

    Raises:
        BadRequest: `tool_choice` asks for a tool that was taken out, or for any where none is left.
        GuardUnavailable: the tools could not be judged.
    """
    places = list(_places(body.get("tools")))
    if not places:
        return body
    matches = await judge([place.tool for place in places], context)
    gone = [place for place, found in zip(places, matches, strict=True) if found]
    if not gone:
        return body
    context.withheld.extend(match for found in matches for match in found)
    context.events.append({"event": "tools_withheld", "withheld": len(gone), "left": len(places) - len(gone)})
    kept = _without(body["tools"], {place.path for place in gone}, ())
    rest = {key: value for key, value in body.items() if key != "tools"} | ({"tools": kept} if kept else {})
    return _chosen(rest, frozenset(name for place in gone for name in place.names))


def _places(tools: Any, at: tuple[int, ...] = (), space: str = "") -> Iterator[_Place]:
    for i, tool in enumerate(tools if isinstance(tools, list) else ()):
        if not isinstance(tool, dict):
            continue
        if not at and isinstance(tool.get("tools"), list):
            yield from _places(tool["tools"], (i,), str(tool.get("name") or ""))
            continue
        inner = tool.get("function")
        definition = inner if isinstance(inner, dict) else tool
        name = str(definition.get("name") or tool.get("type") or "")
        names = frozenset((name, f"{space}__{name}") if space else (name,))
        yield _Place((*at, i), names, Tool(name, "\n".join(_words(definition))))


def _words(definition: dict[str, Any]) -> Iterator[str]:
    """What a definition says to a reader: descriptions, titles and names of parameters."""
    stack: list[Any] = [definition]
    while stack:
        part = stack.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            stack.extend(item for item in reversed(part) if not isinstance(item, str))
        elif isinstance(part, dict):
            for key, value in reversed(part.items()):
                if key == "properties" and isinstance(value, dict):
                    stack.extend(x for name, schema in reversed(value.items()) for x in (schema, name))
                elif key in ("description", "title") or not isinstance(value, str):
                    stack.append(value)


def _without(tools: Sequence[Any], gone: set[tuple[int, ...]], at: tuple[int, ...]) -> list[Any]:
    """The tools in their order; a namespace of which nothing is left goes too."""
    kept = []
    for i, tool in enumerate(tools):
        path = (*at, i)
        if path in gone:
            continue
        if any(one[: len(path)] == path for one in gone):
            inner = _without(tool["tools"], gone, path)
            if inner:
                kept.append({**tool, "tools": inner})
        else:
            kept.append(tool)
    return kept


def _chosen(body: dict[str, Any], gone: frozenset[str]) -> dict[str, Any]:
    """`body` with a `tool_choice` that fits the tools that are left."""
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if isinstance(choice, dict) and kind == "allowed_tools":
        body = {**body, "tool_choice": _allowed(choice, gone)}
    elif isinstance(choice, dict) and _called(choice) in gone:
        raise _unavailable("The tool that tool_choice names is not available here.")
    if body.get("tools"):
        return body
    if kind not in (None, "auto", "none"):
        raise _unavailable("tool_choice asks for a tool, and none of the request's tools is available here.")
    return {key: value for key, value in body.items() if key != "tool_choice"}


def _allowed(choice: dict[str, Any], gone: frozenset[str]) -> dict[str, Any]:
    nested = choice.get("allowed_tools")
    holder = nested if isinstance(nested, dict) else choice
    listed = holder.get("tools")
    kept = [tool for tool in listed if _called(tool) not in gone] if isinstance(listed, list) else listed
    if listed and not kept:
        raise _unavailable("None of the tools that tool_choice allows is available here.")
    return (
        {**choice, "allowed_tools": {**holder, "tools": kept}}
        if holder is nested
        else {**choice, "tools": kept}
    )


def _called(choice: Any) -> str | None:
    """The tool that a choice names."""
    inner = choice.get("function") if isinstance(choice, dict) else None
    name = (
        inner.get("name")
        if isinstance(inner, dict)
        else choice.get("name")
        if isinstance(choice, dict)
        else None
    )
    return name if isinstance(name, str) else None


def _unavailable(message: str) -> BadRequest:
    return BadRequest(message, param="tool_choice")
