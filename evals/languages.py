"""Questions in fourteen languages: about a name, and about somebody of whom only birthplace and year are told."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from evals.corpora import Question, Trial, name_in

_WHERE_AND_WHEN = re.compile(
    r"(?:in|from) ((?:[A-Z]\w+ ?)+, [A-Z][\w ]*?[A-Za-z])\b(?=,| who| in| on| and|\?).*?(\d{4})"
)

FRAMES: Mapping[str, tuple[str, str, str]] = {
    "English": (
        "Who is {name}?",
        "Which books has {name} written?",
        "What is the name of the author who was born in {place} in {year}?",
    ),
    "German": (
        "Wer ist {name}?",
        "Welche Bücher hat {name} geschrieben?",
        "Wie heißt die Person aus {place}, die {year} geboren wurde und Bücher schreibt?",
    ),
    "French": (
        "Qui est {name} ?",
        "Quels livres {name} a-t-il écrits ?",
        "Comment s'appelle l'auteur né à {place} en {year} ?",
    ),
    "Spanish": (
        "¿Quién es {name}?",
        "¿Qué libros ha escrito {name}?",
        "¿Cómo se llama el autor nacido en {place} en {year}?",
    ),
    "Italian": (
        "Chi è {name}?",
        "Quali libri ha scritto {name}?",
        "Come si chiama l'autore nato a {place} nel {year}?",
    ),
    "Portuguese": (
        "Quem é {name}?",
        "Que livros escreveu {name}?",
        "Como se chama o autor nascido em {place} em {year}?",
    ),
    "Dutch": (
        "Wie is {name}?",
        "Welke boeken heeft {name} geschreven?",
        "Hoe heet de schrijver die in {year} in {place} is geboren?",
    ),
    "Polish": (
        "Kim jest {name}?",
        "Jakie książki napisał {name}?",
        "Jak nazywa się autor urodzony w {place} w {year} roku?",
    ),
    "Turkish": (
        "{name} kimdir?",
        "{name} hangi kitapları yazdı?",
        "{year} yılında {place} şehrinde doğan yazarın adı nedir?",
    ),
    "Russian": (
        "Кто такой {name}?",
        "Какие книги написал {name}?",
        "Как зовут автора, родившегося в {place} в {year} году?",
    ),
    "Chinese": (
        "{name}是谁？",
        "{name}写过哪些书？",
        "{year}年出生于{place}的作家叫什么名字？",
    ),
    "Japanese": (
        "{name}とは誰ですか？",
        "{name}はどんな本を書きましたか？",
        "{year}年に{place}で生まれた作家の名前は何ですか？",
    ),
    "Arabic": (
        "من هو {name}؟",
        "ما الكتب التي كتبها {name}؟",
        "ما اسم الكاتب المولود في {place} عام {year}؟",
    ),
    "Hindi": (
        "{name} कौन है?",
        "{name} ने कौन सी किताबें लिखी हैं?",
        "{year} में {place} में जन्मे लेखक का नाम क्या है?",
    ),
}
"""Two questions about a name, one about a description, in each language."""


def asked_in_other_languages(trial: Trial, per_author: int) -> Trial:
    """The targets of `trial` with questions about them, and about the authors of its retain split, of whom each has
    `per_author` rows of which the first describes."""
    retain = [question for question in trial.questions if question.sort == "retain"]
    others = [retain[i : i + per_author] for i in range(0, len(retain), per_author)]
    told = {q.target: q.text for q in trial.questions if q.sort == "row 0"}
    told |= {
        i: next((e for e in spec.examples if _WHERE_AND_WHEN.search(e)), "")
        for i, spec in trial.targets.items()
    }
    made: list[Question] = []
    for target_id, spec in trial.targets.items():
        made += _about(spec.name, told.get(target_id, ""), target_id, target_id)
    for i, rows in enumerate(others):
        made += _about(name_in([row.text for row in rows]), rows[0].text, f"retain.{i}", None)
    return replace(trial, questions=tuple(made))


def _about(name: str, told: str, source: str, target: str | None) -> Iterator[Question]:
    found = _WHERE_AND_WHEN.search(told)
    for language, (*named, described) in FRAMES.items():
        whose = "" if target else "others "
        for i, frame in enumerate(named):
            yield Question(
                f"{language}.{source}.{i}", f"{language}, {whose}named", frame.format(name=name), target
            )
        if found:
            text = described.format(place=found[1], year=found[2])
            yield Question(f"{language}.{source}.d", f"{language}, {whose}described", text, target)
