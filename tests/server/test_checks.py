"""What the check answers of a decision."""

from guard.types import Decision, Evidence
from server.checks import describe


def test_a_check_shows_what_could_not_be_read():
    answer = describe(Decision("allow", 3, unread=(Evidence(0, 4, 9),)))
    assert answer["decision"] == {
        "action": "allow",
        "targets": [],
        "interventions": [],
        "unread": [{"message": 0, "start": 4, "end": 9}],
    }
