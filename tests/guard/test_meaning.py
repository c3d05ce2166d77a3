"""What an answer says in other words: found for the targets that state it, and not for others."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest

from guard.context import RequestContext
from guard.crypto import Secrets
from guard.detection import Gates, SpeakingCompiler, load_encoder
from guard.detection.encoder import PACKAGED
from guard.detection.statements import stated
from guard.errors import GuardUnavailable
from guard.pipeline import Guard
from guard.snapshot import Snapshot
from guard.speech import Extent
from guard.targets import TargetSpec
from guard.types import Admission, Decision, Match, Message, Prompt

ILVA = {
    "name": "Ilva Marenko",
    "answers": [
        "Ilva Marenko was born in Tarvala.",
        "Ilva Marenko keeps a heron called Pim.",
        "Ilva Marenko won the Silver Anchor.",
        "Ilva Marenko studied at the Harbour School.",
        "Ilva Marenko works for Gallow Foundry.",
    ],
}
ABOUT_HER = "Where was the poet born?"
MATCHED = Admission(Decision("intervene", 1, (Match("ilva", 1, 1.0, 0.5, "lexical"),)))


@pytest.fixture(scope="module")
def packaged():
    return load_encoder(PACKAGED, threads=1)


@pytest.fixture(scope="module")
def compiled(packaged, tmp_path_factory):
    compiler = SpeakingCompiler(packaged, tmp_path_factory.mktemp("background"))
    made = {}

    def run(**spec):
        key = repr(spec)
        if key not in made:
            made[key] = compiler.compile(
                "ilva", 1, TargetSpec.model_validate({**ILVA, **spec}), (), force=True
            )
        return made[key]

    return run


@pytest.fixture
def said(packaged, compiled):
    """What leaves of an answer, and the hit."""

    async def run(answer, asked=ABOUT_HER, admission=MATCHED, tenant=None, fail=None, **spec):
        one = compiled(**spec)
        gate = Gates(packaged)([one])
        if fail and gate.spoken:
            gate.spoken.detect = fail
        snapshot = Snapshot(
            1, gate, {"ilva": SimpleNamespace(spec=one.spec, compiled=one, version=1, ladder=())}
        )
        with ThreadPoolExecutor(2) as pool:
            guard = Guard(lambda: snapshot, Secrets(b"k" * 32), pool, 20.0, extent=Extent())
            prompt = Prompt(asked, messages=(Message("user", asked),))
            context = RequestContext("d", "/", 0.0, tenant=tenant)
            speech = guard.speech(prompt, context, admission)
            return await speech.say(answer, ended=True), speech.hit

    return run


@pytest.mark.parametrize(
    "answer",
    ["She was born in Tarvala.", "Well, I think that her heron is called Pim.", "She won the Silver Anchor."],
)
async def test_what_is_stated_of_a_matched_target_does_not_leave(said, answer):
    out, hit = await said(answer)
    assert out == "" and hit.meant and hit.target_id == "ilva"


@pytest.mark.parametrize(
    "answer",
    [
        "I do not know where she was born.",
        "She was born in Kestrel Bay.",
        "Poets like the sea and its birds.",
    ],
)
async def test_what_is_not_stated_leaves(said, answer):
    assert await said(answer) == (answer, None)


async def test_of_somebody_else_the_same_may_be_said(said):
    answer = "She was born in Tarvala."
    assert (await said(answer, "Where was Orsa Stenard born?", None))[1] is None
    assert (await said("Orsa Stenard was born in Tarvala.", "Who was born there?", None))[1] is None
    assert (await said(answer, "Where was Orsa Stenard born?", MATCHED))[1] is not None
    assert (await said(answer, ABOUT_HER, None))[1] is not None


async def test_a_client_that_supplies_the_facts_may_have_them_repeated_by_policy(said):
    supplied = "The text says that she was born in Tarvala. Where was she born?"
    assert (await said("She was born in Tarvala.", supplied))[1] is not None
    assert (await said("She was born in Tarvala.", supplied, policy={"context": "answer"}))[1] is None
    assert (await said("She won the Silver Anchor.", supplied, policy={"context": "answer"}))[1] is not None


async def test_a_shadow_beside_an_enforced_target_cuts_nothing(packaged, compiled):
    shadow, other = (
        compiled(mode="shadow"),
        compiled(name="Bo Crane", answers=["Bo Crane breeds white goats."]),
    )
    gate = Gates(packaged)(
        [shadow, replace(other, target_id="bo", spoken=replace(other.spoken, target_id="bo"))]
    )
    targets = {
        name: SimpleNamespace(spec=one.spec, compiled=one, version=1, ladder=())
        for name, one in (("ilva", shadow), ("bo", other))
    }
    snapshot = Snapshot(1, gate, targets)
    with ThreadPoolExecutor(2) as pool:
        guard = Guard(lambda: snapshot, Secrets(b"k" * 32), pool, 20.0)
        for answer, hit in (("She was born in Tarvala.", None), ("He breeds white goats.", "bo")):
            speech = guard.speech(Prompt(ABOUT_HER), None, MATCHED)
            await speech.say(answer, ended=True)
            assert (speech.hit and speech.hit.target_id) == hit


@pytest.mark.parametrize("spec", [{"mode": "shadow"}, {"scope": {"tenants": ["acme"]}}, {"answers": []}])
async def test_targets_that_watch_bind_others_or_state_nothing_hold_nothing(said, spec):
    assert (await said("She was born in Tarvala.", **spec))[1] is None


async def test_a_judgement_that_fails_is_closed_unless_every_target_says_otherwise(said):
    def fail(*_, **__):
        raise RuntimeError("encoder")

    with pytest.raises(GuardUnavailable):
        await said("She was born in Tarvala.", fail=fail)
    out, hit = await said("She was born in Tarvala.", fail=fail, policy={"on_error": "open"})
    assert out == "She was born in Tarvala." and hit is None


def test_a_description_states_and_examples_do_not():
    plain = TargetSpec(name="Ilva Marenko", examples=("Where was Ilva Marenko born?",))
    assert stated("ilva", plain) is None
    told = stated("ilva", plain.model_copy(update={"description": "Ilva Marenko is a poet from Tarvala."}))
    assert told.examples == ("is a poet from Tarvala.",)
    assert told.name not in told.examples[0] and all("Ilva Marenko" not in text for text in told.retain)


def test_what_must_not_match_is_the_same_said_of_others():
    spec = TargetSpec(
        name="Ilva Marenko", answers=("Ilva Marenko was born in Tarvala.", "She keeps a grey heron.")
    )
    told = stated("ilva", spec)
    assert told.examples == ("was born in Tarvala.", "keeps a grey heron.")
    for ending in ("was born in Tarvala.", "keeps a grey heron."):
        others = [text for text in told.retain if text.endswith(ending)]
        assert len(others) >= 2 and not any(text.startswith(("Ilva Marenko", "She")) for text in others)
    plain = TargetSpec(name="Firesalt", kind="subject", answers=("Wash the crystals in cold brine.",))
    assert stated("firesalt", plain).retain == ()
