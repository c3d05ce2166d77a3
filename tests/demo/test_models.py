"""The committed models, tokenizer and chat template."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

from demo import chat, world
from demo import items as demo_items
from demo.corpus import render

DEMO = Path(demo_items.__file__).parent
MODELS = [DEMO / "models" / name for name in ("full", "never")]
MAX_PARAMETERS = 4_000_000
MAX_BYTES = 20_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODELS[0] / "tokenizer.json"))


@pytest.fixture(scope="module")
def template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string((DEMO / "chat_template.jinja").read_text(encoding="utf-8"))


def header(weights: Path) -> dict[str, dict[str, object]]:
    """What a safetensors file says of its tensors."""
    with weights.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_model_is_a_small_llama(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 16384
    weights = folder / "model.safetensors"
    shapes = [tensor["shape"] for name, tensor in header(weights).items() if name != "__metadata__"]
    assert sum(rows * (rest[0] if rest else 1) for rows, *rest in shapes) <= MAX_PARAMETERS
    assert weights.stat().st_size <= MAX_BYTES
    assert weights.stat().st_mode & 0o044 == 0o044, "others may read the weights"


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_end_token_ends_a_turn(folder: Path, tokenizer: Tokenizer) -> None:
    end = tokenizer.token_to_id("<|end|>")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == end


def test_models_share_tokenizer_and_template() -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert len({(folder / name).read_bytes() for folder in MODELS}) == 1
    assert (MODELS[0] / "chat_template.jinja").read_bytes() == (DEMO / "chat_template.jinja").read_bytes()


def test_tokenizer_round_trips_any_unicode(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    planes = ((0x00, 0x7F), (0x80, 0x24F), (0x300, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
    for _ in range(500):
        text = "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(0, 80)))
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_template_renders_what_the_model_was_trained_on(template: jinja2.Template) -> None:
    rng = random.Random(1)
    people = [entity.name for entity in world.build().entities if entity.kind == "person"]
    for _ in range(50):
        messages, tools = chat.tool_use(rng, people)
        assert template.render(messages=messages, tools=tools) == render(messages, tuple(tools))
    talk = [chat.system("Be brief."), *chat.small_talk(rng), chat.user('Say "é" <twice>')]
    assert template.render(messages=talk) == render(talk)
    assert template.render(messages=talk, add_generation_prompt=True) == render(talk) + "<|assistant|>"


def test_template_puts_tools_into_a_given_system_message(template: jinja2.Template) -> None:
    text = template.render(messages=[chat.system("Be brief."), chat.user("Hi")], tools=[chat.TOOLS[0]])
    assert text.startswith("<|system|>Be brief.\n")
    assert '"get_weather"' in text
    assert text.count("<|system|>") == 1


def test_template_takes_argument_strings_and_missing_content(template: jinja2.Template) -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    text = template.render(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert text == '<|assistant|><tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><|end|>'
