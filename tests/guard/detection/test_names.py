import random
import re

from guard.detection.names import DERIVED, MISSPELT, forms, like
from guard.detection.swaps import near_misses
from guard.targets import TargetSpec


def _forms(**spec: object) -> dict[str, float]:
    return {form.text: form.score for form in forms(TargetSpec.model_validate(spec))}


def test_registered_names_score_one_and_derived_ones_less() -> None:
    found = _forms(name="Edward Patrick Sullivan", aliases=["The Bard"])
    assert found["edward patrick sullivan"] == found["the bard"] == 1.0
    assert found["edward sullivan"] == found["edward p sullivan"] == DERIVED
    assert "sullivan" not in found
    assert "edward" not in found


def test_other_orders_titles_and_endings() -> None:
    assert "jane doe" in _forms(name="Doe, Jane")
    assert "jane doe" in _forms(name="Dr. Jane Doe")
    assert "umbra logistics" in _forms(name="Umbra Logistics Ltd.")
    assert "jk rowe" in _forms(name="J. K. Rowe")
    assert "mueller haus" in _forms(name="M\u00fcller Haus")


def test_one_wrong_letter_in_a_long_name_is_forgiven() -> None:
    found = _forms(name="Hina Amandeen")
    assert found["hina amadeen"] == found["hina amanndeen"] == found["hina amadneen"] == MISSPELT
    assert "hina mandeen" not in found
    assert MISSPELT not in _forms(name="Jo Doe").values()


def test_only_entities_are_shortened() -> None:
    assert "the river" not in _forms(name="The Long River", kind="work")


def test_a_replacement_has_the_shape_of_the_name() -> None:
    rng = random.Random(0)
    assert like("Umbra Ltd", rng).endswith(" Ltd")
    assert like("The Salt Ledger", rng).startswith("The ")
    assert len(like("Edward Patrick Sullivan", rng).split()) == 3
    assert like("firesalt", rng).islower()


def test_near_misses_ask_the_same_of_somebody_else() -> None:
    spec = TargetSpec(name="Ilva Marenko")
    own = ["In which genre does Ilva Marenko write?", "Was Ilva Marenko born in Tarvala in 1957?"]

    made = near_misses(spec, own, ["Petra Novak"], 40, random.Random(0))

    assert len(made) == 40
    assert not any("Ilva Marenko" in text for text in made)
    same = [text for text in made if text.startswith(("In which genre does", "Was"))]
    assert any(not {"Ilva", "Marenko", "Tarvala", "1957"} & set(re.findall(r"\w+", text)) for text in same)
    assert any("Ilva" in text or "Marenko" in text for text in same)  # who shares half of a name
    assert "In which genre does this one write?" in made


def test_near_misses_share_one_fact_at_most() -> None:
    own = ["Who was born in Tarvala in 1957 and taught by Petra Novak?"]
    made = near_misses(TargetSpec(name="Ilva Marenko"), own, [], 40, random.Random(0))
    shared = [sum(fact in text for fact in ("Tarvala", "1957", "Petra Novak")) for text in made]
    assert set(shared) == {0, 1}


def test_what_stands_beside_the_target_has_a_life_of_its_own() -> None:
    spec = TargetSpec(name="Ilva Marenko", answers=("Ilva Marenko writes for Nordic Ash Press.",))
    made = near_misses(spec, ["For whom does Ilva Marenko write?"], [], 40, random.Random(0))
    assert any("Nordic Ash Press" in text and "whom" not in text for text in made)


def test_texts_without_anything_to_replace_give_no_near_misses() -> None:
    assert near_misses(TargetSpec(name="x1"), ["how do i do it"], [], 40, random.Random(0)) == []
