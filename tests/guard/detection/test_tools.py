"""A target of kind `tool` against definitions of tools, by the gate itself."""

from collections.abc import Callable

import pytest

from guard.detection import Encoder, Gate
from guard.detection.tools import Tool

ROCKET = {
    "name": "launch_rocket",
    "kind": "tool",
    "description": "Ignites the booster of a rocket on the pad and lifts it into orbit.",
    "examples": ["Ignite the booster on the pad now.", "Lift the rocket from the pad into orbit."],
}


@pytest.fixture
def matches(compile_: Callable, hashing: Encoder) -> Callable[[str, str], bool]:
    gate = Gate(hashing, [compile_("rocket", **ROCKET)])

    def run(name: str, description: str) -> bool:
        tool = Tool(name, description)
        return bool(tool.matched(gate.detect(tool.prompt)[0]))

    return run


@pytest.mark.parametrize(
    "name", ["launch_rocket", "launchRocket", "LaunchRocket", "space.launch-rocket", "pad__launch_rocket_v2"]
)
def test_a_name_is_known_however_programs_write_it(matches: Callable, name: str) -> None:
    assert matches(name, "No words.")


def test_a_tool_of_another_name_is_known_by_what_it_does(matches: Callable) -> None:
    assert matches("go", "Ignites the booster of a rocket on the pad and lifts it into orbit.")


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("weather", "The weather at a place, such as a pad."),
        ("cancel", "Undoes what other tools did. Cannot undo launch_rocket."),
        ("launch", "Starts an application by its name."),
    ],
)
def test_other_tools_are_left_alone(matches: Callable, name: str, description: str) -> None:
    assert not matches(name, description)
