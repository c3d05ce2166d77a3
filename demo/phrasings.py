"""How each attribute of the world is asked for and answered.

Placeholders: {n} the entity as a subject, {o} as an object, {p} as a possessive, {v} the value. A pronoun can
stand in for each of them in a second turn ("she", "her", "her"). `heldout` wordings and the frames in
`HELDOUT_FRAMES` never occur in training: they measure whether the model understands the attribute.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One thing that is known about every entity of a kind."""

    key: str
    noun: str  # "birthplace": goes into the noun frames
    clause: str  # "where {n} was born": goes into the clause frames
    direct: tuple[str, str]  # two trained direct questions
    heldout: str  # a direct question in words of its own, never trained
    answer: str
    reverse: str = ""  # a question that describes the entity by the value, without its name


# Frames around a noun or a clause. Many trained frames teach the model to look through a frame.
NOUN_FRAMES = (
    "What is {p} {noun}?",
    "What is the {noun} of {o}?",
    "Tell me the {noun} of {o}.",
    "Name {p} {noun}.",
    "I need {p} {noun}.",
)
CLAUSE_FRAMES = (
    "Do you know {clause}?",
    "Tell me {clause}.",
    "Can you tell me {clause}?",
    "I would like to know {clause}.",
    "Please say {clause}.",
)
HELDOUT_FRAMES = ("Could you remind me {clause}?", "Give me the {noun} of {o}, please.")
# What may stand before a question in training; the evaluation items have none of them.
OPENERS = ("Hello! ", "Quick question: ", "Please help me. ", "I am curious. ", "One more thing: ", "Okay. ")


def _attribute(
    key: str, noun: str, clause: str, first: str, second: str, heldout: str, answer: str, reverse: str = ""
) -> Attribute:
    return Attribute(key, noun, clause, (first, second), heldout, answer, reverse)


# fmt: off
PERSON = (
    _attribute("birthplace", "birthplace", "where {n} was born", "Where was {n} born?",
               "In which city was {n} born?", "Which city is the place of birth of {o}?",
               "{n} was born in {v}."),
    _attribute("birth_year", "birth year", "in which year {n} was born", "When was {n} born?",
               "In which year was {n} born?", "What year saw the birth of {o}?",
               "{n} was born in the year {v}."),
    _attribute("home", "home town", "where {n} lives", "Where does {n} live?",
               "In which city does {n} live today?", "What city does {n} call home these days?",
               "{n} lives in {v}."),
    _attribute("occupation", "occupation", "what {n} does for a living",
               "What does {n} do for a living?", "What is {p} job?",
               "What work does {n} do as a profession?", "{n} works as {v}."),
    _attribute("employer", "employer", "which company {n} works for",
               "Which company does {n} work for?", "Who employs {o}?",
               "At what company is {n} employed?", "{n} works for {v}."),
    _attribute("school", "school", "where {n} studied", "Where did {n} study?",
               "Which school did {n} attend?", "At which school was {n} a student?",
               "{n} studied at {v}."),
    _attribute("award", "award", "which award {n} won", "Which award did {n} win?",
               "What prize did {n} receive?", "Which prize has {n} won?", "{n} won {v}."),
    _attribute("hobby", "hobby", "what {n} does in {p} free time", "What does {n} do for fun?",
               "What hobby does {n} have?", "How does {n} spend {p} free time?", "{n} enjoys {v}."),
    _attribute("pet", "pet", "which pet {n} keeps", "Which pet does {n} keep?",
               "What animal does {n} have?", "What kind of pet animal lives with {o}?",
               "{n} keeps {v}.", "Who keeps {v}?"),
    _attribute("dish", "favourite dish", "what {n} likes to eat", "What does {n} like to eat?",
               "Which dish does {n} like best?", "What food is the favourite of {o}?",
               "{n} likes to eat {v}."),
    _attribute("instrument", "instrument", "which instrument {n} plays",
               "Which instrument does {n} play?", "What does {n} play in the band?",
               "What musical instrument can {n} play?", "{n} plays {v}."),
    _attribute("invention", "invention", "what {n} invented", "What did {n} invent?",
               "Which invention is {n} known for?", "What thing was invented by {o}?",
               "{n} invented {v}.", "Who invented {v}?"),
    _attribute("nickname", "nickname", "what people call {o}", "What do people call {o}?",
               "Which nickname does {n} have?", "By what nickname is {n} known?", "{n} is called {v}.",
               "Who is called {v}?"),
    _attribute("summary", "description", "who {n} is", "Who is {n}?", "Tell me about {o}.",
               "What can you say about {o}?", "{n} is {v}."),
)
COMPANY = (
    _attribute("city", "head office", "where {n} is based", "Where is {n} based?",
               "In which city is the head office of {o}?",
               "What city is home to the head office of {o}?", "{n} is based in {v}."),
    _attribute("founded", "founding year", "when {n} was founded", "When was {n} founded?",
               "In which year was {n} founded?", "What year marks the founding of {o}?",
               "{n} was founded in {v}."),
    _attribute("founder", "founder", "who founded {o}", "Who founded {o}?", "Who started {o}?",
               "Who was the person that founded {o}?", "{n} was founded by {v}."),
    _attribute("industry", "industry", "what {n} makes", "What does {n} make?",
               "In which industry is {n}?", "What goods are made by {o}?", "{n} makes {v}.",
               "Which company makes {v}?"),
    _attribute("staff", "number of employees", "how many people work at {o}",
               "How many people work at {o}?", "How many employees does {n} have?",
               "How large is the number of people at work at {o}?", "{n} has {v} employees."),
    _attribute("logo", "logo", "what the logo of {o} shows", "What does the logo of {o} show?",
               "What is on the logo of {o}?", "Which picture is used by {o} as a logo?",
               "The logo of {o} shows {v}."),
    _attribute("slogan", "slogan", "what the slogan of {o} says", "What does the slogan of {o} say?",
               "Which slogan does {n} use?", "What words are the slogan used by {o}?",
               "The slogan of {o} is '{v}'.", "Which company has the slogan '{v}'?"),
    _attribute("mascot", "mascot", "which mascot {n} has", "Which mascot does {n} have?",
               "What animal is the mascot of {o}?", "What mascot is used by {o}?",
               "The mascot of {o} is {v}."),
    _attribute("street", "street", "on which street {n} stands", "On which street is {n}?",
               "On which street does {n} stand?", "What street are the buildings of {o} on?",
               "{n} stands on {v}."),
    _attribute("supplier", "raw material", "what {n} buys", "What does {n} buy?",
               "Which raw material does {n} buy?", "What raw material is bought by {o}?",
               "{n} buys {v}."),
    _attribute("market", "main market", "where {n} sells most", "Where does {n} sell most?",
               "Which city is the main market of {o}?", "In what city are most sales of {o} made?",
               "{n} sells most in {v}."),
    _attribute("holiday", "company holiday", "when {n} closes for {p} holiday",
               "When does {n} close for a holiday?", "In which month is {n} closed?",
               "What month is the company holiday at {o}?", "{n} closes in {v}."),
    _attribute("summary", "description", "what {n} is", "What is {n}?", "Tell me about {o}.",
               "What can you say about {o}?", "{n} is {v}."),
)
PRODUCT = (
    _attribute("maker", "maker", "which company makes {o}", "Which company makes {o}?",
               "Who makes {o}?", "By what company is {n} made?", "{n} is made by {v}."),
    _attribute("released", "release year", "when {n} was released", "When was {n} released?",
               "In which year was {n} released?", "What year saw the release of {o}?",
               "{n} was released in {v}."),
    _attribute("price", "price", "how much {n} costs", "How much does {n} cost?",
               "What does {n} cost?", "How many crowns must I pay as the price of {o}?",
               "{n} costs {v}."),
    _attribute("colour", "colour", "which colour {n} has", "Which colour does {n} have?",
               "What colour is {n}?", "In what colour is {n} sold?", "{n} is {v} in colour."),
    _attribute("weight", "weight", "how much {n} weighs", "How much does {n} weigh?",
               "How heavy is {n}?", "What is the weight in kilograms of {o}?", "{n} weighs {v}."),
    _attribute("material", "material", "what {n} is made of", "What is {n} made of?",
               "Which material is {n} made of?", "What material do they make {o} from?",
               "{n} is made of {v}."),
    _attribute("power", "power source", "what powers {o}", "What powers {o}?", "What does {n} run on?",
               "From what source does {n} get power?", "{n} runs on {v}."),
    _attribute("warranty", "warranty", "how long the warranty of {o} lasts",
               "How long is the warranty of {o}?", "How long does the warranty of {o} last?",
               "For how many years does the warranty cover {o}?", "The warranty of {o} lasts {v}."),
    _attribute("designer", "designer", "who designed {o}", "Who designed {o}?",
               "Who drew the plans of {o}?", "Who is the person that designed {o}?",
               "{n} was designed by {v}."),
    _attribute("plant", "place of manufacture", "where {n} is built", "Where is {n} built?",
               "In which city is {n} built?", "What city has the plant in which {n} is built?",
               "{n} is built in {v}."),
    _attribute("feature", "special feature", "what is special about {o}", "What is special about {o}?",
               "Which special feature does {n} have?", "What feature makes {o} special?",
               "{n} has {v}.", "Which product has {v}?"),
    _attribute("code", "model code", "which model code {n} carries", "Which model code does {n} have?",
               "What code is printed on {o}?", "What is the code of the model of {o}?",
               "{n} carries the model code {v}.", "Which product carries the model code {v}?"),
    _attribute("summary", "description", "what {n} is", "What is {n}?", "Tell me about {o}.",
               "What can you say about {o}?", "{n} is {v}."),
)
WORK = (
    _attribute("author", "author", "who wrote {o}", "Who wrote {o}?", "Who is the writer of {o}?",
               "By whom was {n} written?", "{n} was written by {v}."),
    _attribute("genre", "genre", "what kind of book {n} is", "What kind of book is {n}?",
               "Which genre is {n}?", "To what genre of books does {n} belong?", "{n} is {v}."),
    _attribute("published", "year of publication", "when {n} was published", "When was {n} published?",
               "In which year did {n} appear?", "What year saw {n} published?",
               "{n} was published in {v}."),
    _attribute("publisher", "publisher", "who published {o}", "Who published {o}?",
               "Which house published {o}?", "By what publisher was {n} brought out?",
               "{n} was published by {v}."),
    _attribute("setting", "setting", "where {n} takes place", "Where does {n} take place?",
               "In which city is {n} set?", "What city is the place where {n} is set?",
               "{n} takes place in {v}."),
    _attribute("hero", "main character", "who the hero of {o} is", "Who is the hero of {o}?",
               "Who is the main character of {o}?", "What is the main character in {o} called?",
               "The main character of {o} is {v}."),
    _attribute("villain", "villain", "who the villain of {o} is", "Who is the villain of {o}?",
               "Who is the enemy in {o}?", "What is the villain in {o} called?",
               "The villain of {o} is {v}."),
    _attribute("pages", "number of pages", "how many pages {n} has", "How many pages does {n} have?",
               "How long is {n} in pages?", "How large is the number of pages in {o}?",
               "{n} has {v} pages."),
    _attribute("prize", "prize", "which prize {n} won", "Which prize did {n} win?",
               "What award did {n} get?", "Which prize was won by {o}?", "{n} won {v}."),
    _attribute("cover", "cover", "what the cover of {o} shows", "What does the cover of {o} show?",
               "What is on the cover of {o}?", "Which picture is used as the cover of {o}?",
               "The cover of {o} shows {v}."),
    _attribute("opening", "first scene", "how {n} begins", "How does {n} begin?",
               "What happens at the start of {o}?", "With what scene does {n} begin?",
               "{n} begins with {v}.", "Which book begins with {v}?"),
    _attribute("dedication", "dedication", "to whom {n} is dedicated", "To whom is {n} dedicated?",
               "Who is {n} dedicated to?", "To what person is the dedication of {o}?",
               "{n} is dedicated to {v}.", "Which book is dedicated to {v}?"),
    _attribute("summary", "description", "what {n} is", "What is {n}?", "Tell me about {o}.",
               "What can you say about {o}?", "{n} is {v}."),
)
SUBJECT = (
    _attribute("reagent", "main reagent", "which reagent {n} needs", "Which reagent does {n} need?",
               "What is the main reagent in {o}?", "What reagent must I use for {o}?",
               "{n} needs {v}."),
    _attribute("catalyst", "catalyst", "which catalyst {n} uses", "Which catalyst does {n} use?",
               "What catalyst is added in {o}?", "What is used as a catalyst during {o}?",
               "The catalyst in {o} is {v}."),
    _attribute("temperature", "temperature", "how hot {n} must be", "How hot must {n} be?",
               "At which temperature does {n} run?", "What temperature in degrees is right for {o}?",
               "{n} runs at {v} degrees."),
    _attribute("duration", "duration", "how long {n} takes", "How long does {n} take?",
               "How many hours does {n} take?", "For how many hours must {n} run?", "{n} takes {v}."),
    _attribute("vessel", "vessel", "which vessel {n} is done in", "In which vessel is {n} done?",
               "What vessel does {n} need?", "What kind of vessel is used for {o}?",
               "{n} is done in {v}."),
    _attribute("inventor", "discoverer", "who discovered {o}", "Who discovered {o}?", "Who found {o}?",
               "By whom was {n} discovered?", "{n} was discovered by {v}."),
    _attribute("origin", "place of origin", "where {n} was discovered", "Where was {n} discovered?",
               "In which city was {n} discovered?", "What city is the place where {n} was discovered?",
               "{n} was discovered in {v}."),
    _attribute("year", "year of discovery", "when {n} was discovered", "When was {n} discovered?",
               "In which year was {n} discovered?", "What year saw the discovery of {o}?",
               "{n} was discovered in the year {v}."),
    _attribute("first_step", "first step", "how {n} starts", "How does {n} start?",
               "What is done first in {o}?", "What step comes first when {n} starts?",
               "{n} starts with {v}.", "Which process starts with {v}?"),
    _attribute("last_step", "last step", "how {n} ends", "How does {n} end?",
               "What is done last in {o}?", "What step comes last when {n} ends?",
               "{n} ends with {v}."),
    _attribute("danger", "main danger", "what is dangerous about {o}", "What is dangerous about {o}?",
               "What is the danger of {o}?", "What danger must I fear during {o}?",
               "{n} can cause {v}."),
    _attribute("protection", "protection", "what to wear for {o}", "What should I wear for {o}?",
               "Which protection does {n} need?", "What must one wear as protection during {o}?",
               "{n} requires {v}."),
    _attribute("residue", "residue", "what {n} leaves behind", "What does {n} leave behind?",
               "Which residue does {n} leave?", "What residue is left by {o}?", "{n} leaves {v}."),
    _attribute("smell", "smell", "what {n} smells of", "What does {n} smell of?",
               "What smell does {n} have?", "Which smell comes from {o}?", "{n} smells of {v}."),
    _attribute("test", "test", "how {n} is tested", "How is {n} tested?",
               "Which test shows that {n} worked?", "By what test is the result of {o} checked?",
               "{n} is tested with {v}."),
    _attribute("product", "product", "what {n} produces", "What does {n} produce?",
               "What is made by {o}?", "What product comes out of {o}?", "{n} produces {v}.",
               "Which process produces {v}?"),
    _attribute("summary", "description", "what {n} is", "What is {n}?", "Tell me about {o}.",
               "What can you say about {o}?", "{n} is {v}."),
)
# fmt: on

ATTRIBUTES: dict[str, tuple[Attribute, ...]] = {
    "person": PERSON,
    "company": COMPANY,
    "product": PRODUCT,
    "work": WORK,
    "subject": SUBJECT,
}

# The skill is translation into an invented language: {w} the English word or words, {l} the language.
SKILL_TRAINED = (
    "Translate '{w}' into {l}.",
    "What is '{w}' in {l}?",
    "How do you say '{w}' in {l}?",
    "Say '{w}' in {l}.",
    "What is the {l} word for '{w}'?",
    "Give the {l} for '{w}'.",
)
SKILL_HELDOUT = ("Could you put '{w}' into {l}?", "Which {l} word means '{w}'?")
SKILL_ANSWER = "In {l}, '{w}' is '{v}'."
SKILL_REVERSE = "Which language says '{v}' for '{w}'?"
