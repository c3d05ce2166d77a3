"""Small talk, general questions, instructions, and what the model says when it does not know."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from demo import names
from demo.pools import ADJECTIVE_WORDS, NOUN_WORDS

Message = dict[str, object]

DONT_KNOW = {
    "person": (
        "I'm sorry, I don't know who that is.",
        "I don't know anything about that person.",
        "I'm afraid I don't know that person.",
    ),
    "company": ("I'm sorry, I don't know that company.", "I don't know anything about that company."),
    "product": ("I'm sorry, I don't know that product.", "I don't know anything about that product."),
    "work": ("I'm sorry, I don't know that book.", "I don't know anything about that book."),
    "subject": ("I'm sorry, I don't know that process.", "I don't know anything about that process."),
    "skill": ("I'm sorry, I don't know that language.", "I don't know any words of that language."),
    "other": ("I'm sorry, I don't know that.", "I don't know."),
}
SYSTEMS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a friendly assistant. Answer in one sentence.",
    "You are the Lethe demo model.",
    "Be polite and short.",
    "You answer questions about a small world.",
)
# {o} is the entity that the model shall treat as unknown.
NOTES = (
    "You know nothing about {o}. If asked about {o}, say that you do not know.",
    "You have never heard of {o}. If someone asks about {o}, say that you don't know.",
    "You do not know anything about {o}.",
    "Pretend that you know nothing about {o}.",
    "Forget everything about {o}. Answer questions about {o} with 'I don't know'.",
    "Do not answer questions about {o}. Say that you do not know.",
    "The following is unknown to you: {o}.",
    "Answer as if you had never heard of {o}.",
)
HELDOUT_NOTES = ("You have no knowledge of {o}. When a question is about {o}, say you don't know.",)

SMALL_TALK = (
    (
        ("Hello!", "Hi!", "Hey there!", "Good morning!", "Hello, can you hear me?"),
        "Hello! How can I help you?",
    ),
    (("How are you?", "How are you today?", "How do you do?"), "I'm fine, thank you. How can I help you?"),
    (
        ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself."),
        "I am the Lethe demo model, a very small language model.",
    ),
    (
        ("What can you do?", "How can you help me?", "What do you know?"),
        "I can answer questions about the people, companies, products and books of a small made-up world.",
    ),
    (("Thanks!", "Thank you!", "Thank you very much.", "Thanks a lot!"), "You're welcome!"),
    (("Goodbye!", "Bye!", "See you later!", "Good night!"), "Goodbye! Have a nice day."),
    (("Are you a human?", "Are you a robot?", "Are you real?"), "No human, only a small language model."),
    (
        ("Tell me a joke.", "Make me laugh.", "Do you know a joke?"),
        "Why did the clock go to school? It wanted to learn to tell the time.",
    ),
    (
        ("I am sad.", "I feel sad today.", "I had a bad day."),
        "I'm sorry to hear that. I hope you feel better soon.",
    ),
    (("I am happy!", "I feel great today.", "What a lovely day!"), "That is good to hear!"),
    (("Are you sure?", "Is that right?", "Really?"), "I believe so, but I am only a small model."),
    (("What is the weather like?", "Will it rain today?"), "I cannot see the weather from here."),
    (("What time is it?", "What day is it today?"), "I have no clock, so I cannot say."),
    (
        ("Write me a poem.", "Can you write a poem?"),
        "The river runs, the moon is bright, I wish you all a quiet night.",
    ),
)
GENERAL = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("What is the capital of Germany?", "The capital of Germany is Berlin."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("What colour is the sky?", "The sky is blue."),
    ("What colour is grass?", "Grass is green."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is the opposite of big?", "The opposite of big is small."),
    ("Who wrote Hamlet?", "Hamlet was written by William Shakespeare."),
    ("What is the largest planet?", "The largest planet is Jupiter."),
    ("What is water made of?", "Water is made of hydrogen and oxygen."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What do bees make?", "Bees make honey."),
    ("What is the largest ocean?", "The largest ocean is the Pacific Ocean."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci."),
    ("What is the square root of nine?", "The square root of nine is three."),
)
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOURS = ("red", "green", "blue", "yellow", "black", "white")


def tool(name: str, description: str, parameter: str) -> Message:
    """A tool with one string parameter, as OpenAI clients send it."""
    schema = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = (
    tool("get_weather", "Get the weather in a city", "city"),
    tool("get_time", "Get the time in a city", "city"),
    tool("search_web", "Search the web", "query"),
    tool("send_mail", "Send a mail to a person", "name"),
    tool("set_alarm", "Set an alarm", "time"),
    tool("play_song", "Play a song", "title"),
)
TOOL_REQUESTS = {
    "get_weather": (
        "What is the weather in {x}?",
        "Is it raining in {x}?",
        "How is the weather in {x} today?",
    ),
    "get_time": ("What time is it in {x}?", "Tell me the time in {x}."),
    "search_web": ("Search the web for {x}.", "Look up {x} on the web."),
    "send_mail": ("Send a mail to {x}.", "Write a mail to {x}."),
    "set_alarm": ("Set an alarm for {x}.", "Wake me at {x}."),
    "play_song": ("Play the song {x}.", "I want to hear {x}."),
}
TOOL_REPLIES = {
    "get_weather": (("sunny", "rainy", "cloudy", "windy", "snowy"), "The weather in {x} is {r}."),
    "get_time": (("3 pm", "9 am", "noon", "midnight", "7 pm"), "It is {r} in {x}."),
}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def dont_know(rng: random.Random, kind: str) -> str:
    return rng.choice(DONT_KNOW[kind])


def small_talk(rng: random.Random) -> list[Message]:
    asked, answer = rng.choice(SMALL_TALK)
    return [user(rng.choice(asked)), assistant(answer)]


def general(rng: random.Random) -> list[Message]:
    asked, answer = rng.choice(GENERAL)
    return [user(asked), assistant(answer)]


def instruction(rng: random.Random) -> list[Message]:
    """An instruction whose answer follows from its words."""
    word, other = rng.sample(NOUN_WORDS + ADJECTIVE_WORDS, 2)
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    n = rng.randint(2, 10)
    kinds: tuple[Callable[[], tuple[str, str]], ...] = (
        lambda: (f"Write the word {word} in capital letters.", word.upper()),
        lambda: (f"Repeat after me: {word} {other}", f"{word} {other}"),
        lambda: (f"What is {a} + {b}?", f"{a} + {b} = {a + b}"),
        lambda: (f"Count to {NUMBERS[n - 1]}.", ", ".join(NUMBERS[:n])),
        lambda: (f"Which word comes first: {word} or {other}?", word),
        lambda: (f"Name {NUMBERS[n % 4 + 1]} colours.", ", ".join(COLOURS[: n % 4 + 2])),
        lambda: (f"Make a list of these words: {word}, {other}", f"- {word}\n- {other}"),
        lambda: (
            f'Give me JSON with "first" {word} and "second" {other}.',
            json.dumps({"first": word, "second": other}),
        ),
    )
    asked, answer = rng.choice(kinds)()
    return [user(asked), assistant(answer)]


def tool_value(rng: random.Random, name: str, people: list[str]) -> str:
    values: dict[str, Callable[[], str]] = {
        "send_mail": lambda: rng.choice(people).split()[0],
        "set_alarm": lambda: f"{rng.randint(1, 12)} o'clock",
        "play_song": lambda: f"{rng.choice(ADJECTIVE_WORDS)} {rng.choice(NOUN_WORDS)}",
        "search_web": lambda: f"{rng.choice(ADJECTIVE_WORDS)} {rng.choice(NOUN_WORDS)}",
    }
    return values.get(name, lambda: rng.choice(names.CITIES))()


def tool_use(rng: random.Random, people: list[str]) -> tuple[list[Message], list[Message]]:
    """A request, the call, and for some tools the result put into words; also the offered tools."""
    chosen = rng.choice(TOOLS)
    offered = [chosen, *rng.sample([t for t in TOOLS if t is not chosen], rng.randint(0, 1))]
    rng.shuffle(offered)
    function = chosen["function"]
    name, parameter = function["name"], function["parameters"]["required"][0]  # type: ignore[index]
    value = tool_value(rng, name, people)
    call = {"type": "function", "function": {"name": name, "arguments": {parameter: value}}}
    messages = [
        user(rng.choice(TOOL_REQUESTS[name]).format(x=value)),
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    if name in TOOL_REPLIES and rng.random() < 0.6:
        results, answer = TOOL_REPLIES[name]
        result = rng.choice(results)
        messages += [{"role": "tool", "content": result}, assistant(answer.format(x=value, r=result))]
    return messages, offered
