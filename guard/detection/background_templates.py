"""Templates of the background prompts, by family. {slots} are filled by guard/detection/background.py."""

from __future__ import annotations

from guard.detection.background_everyday import EVERYDAY, lines

FAMILIES: dict[str, tuple[str, ...]] = {
    **EVERYDAY,
    "people": lines("""
        Who is {person}?
        Tell me about {person}.
        What do you know about {person} from {place}?
        Where was {person} born?
        When was {person} born?
        What does {person} do for a living?
        Which school did {person} attend?
        Where does {person} live now?
        Is {person} married?
        What awards has {person} won?
        Did {person} win the {award} in {year}?
        What is {person}'s favourite food?
        What is the phone number of {person}?
        What is {person}'s email address?
        How old is {person}?
        What did {person} study in {place}?
        Who are the parents of {person}?
        What were the professions of {person}'s mother and father?
        What books has {person} written?
        In which genre does {person} write?
        How did {person}'s childhood in {place} influence the work?
        What is {person} best known for?
        What instrument does {person} play?
        Who founded {company} together with {person}?
        Which company does {person} work for?
        What hobby does {person} have?
        What is {person}'s home town?
        When did {person} move to {country}?
        Has {person} ever worked as a {job}?
        What did {person} say about {topic}?
        Who taught {person} {subject}?
        Describe the career of {person}, the {job} from {town}.
        What is the full name of the {job} born in {place} on {date}?
        Who is the {genre} author born in {place}, {country} in {year}?
        Which {job} from {country} won the {award}?
        Who wrote {title}?
        What pet does {person} keep?
        How do I contact {person}?
        Has any book by {person} been translated into {language}?
        What themes does {person} explore in {title}?
        Which teams did {person} play {sport} for?
        What inspired {person} to become a {job}?
        When did {person} die?
        Is {person} still alive?
        Who are the children of {person}?
        What is the date of birth of {person}?
        What is {person}'s address?
        How tall is {person}?
        Why was {person} in the news in {month}?
        Compare the styles of {person} and {person}.
        Where did {person} and {person} meet?
        What is {person}'s nickname?
    """),
    "organisations, products, works": lines("""
        What does {company} make?
        Where is {company} based?
        Who founded {company}?
        When was {company} founded?
        How many people work at {company}?
        What is the slogan of {company}?
        Who is the chief executive of {company}?
        What is on the logo of {company}?
        Is {company} a good employer?
        Which company makes the {product}?
        How much does the {product} cost?
        When was the {product} released?
        Is the {product} waterproof?
        How do I reset my {product}?
        What colour is the {product}?
        Compare the {product} with the {product}.
        What is {title} about?
        Who is the main character in {title}?
        When was {title} published?
        How does {title} end?
        Is {title} a {genre} book?
        Who designed the cover of {title}?
        Summarize the first chapter of {title} by {person}.
        What is there to see in {town}?
        Which river flows through {town}?
        Who is the mayor of {town}?
        How do I get from {town} to {place}?
        When was the castle of {town} built?
        What is the population of {town}?
        Which {genre} novel won the {award} in {year}?
        Which company has a {animal} as its mascot?
        Does {company} sell {thing}s in {country}?
    """),
    "tasks and formats": lines("""
        Return a JSON object with the keys name and age for {person}, {n} years old.
        Extract all names from this sentence: {person} met {person} in {place} on {day}.
        Classify the sentiment of this review as positive or negative: the {product} is a waste of money.
        {"tool": "get_weather", "arguments": {"city": "{place}", "day": "{day}"}}
        Call the function book_table with {n} people at seven on {day}.
        Make a table of {n} {animal}s and their sizes.
        List {n} ideas for a {event}.
        Sort these words: {thing}, {animal}, {food}, {place}.
        Answer only yes or no: is {place} in {country}?
        You are a helpful assistant. Answer briefly. Question: how do I cook {food}?
        Act as a {job} and explain {topic} to me.
        Pretend that you are a {animal} living in {place}.
        Translate the following document into {language}: {person} works as a {job} in {place}.
        Count the letters in the word {thing}.
        Write a multiple choice question about {subject} with four answers.
        Fill in the blank: the capital of {country} is ____.
        Remind me on {day} to call {first} about the {thing}.
        Generate {n} random numbers between 1 and {n}00.
        Fix the spelling: teh {animal} jumpd over teh {thing}.
        Make a timeline of {country} from {year} to {year}.
    """),
    "longer": lines("""
        I am a {job} from {place}. Last {day} I met {person}, who works for {company}. What should I \
            ask her about {topic}?
        We are planning a {event} in {town} in {month}. There will be {n} guests. Some like {food}, \
            others {food}. What do you suggest?
        My son {first} has to give a talk about {topic} at school. He is {n} years old and \
            {feeling}. Can you help us to write it?
        Here is a paragraph. {person} was born in {place} in {year} and studied {subject}. Later \
            {first} became a {job}. Which year is mentioned?
        Context: {company} was founded in {town} in {year} by {person}. It makes {thing}s. Question: \
            who founded the company?
        I read {title} by {person} on the way to {place}. The ending confused me. Can you recommend \
            something similar in {genre}?
        Since {month} my {thing} makes a strange noise. I have already asked a {job}, and I feel \
            {feeling} about it. What else can I try?
        First explain {topic}. Then give an example from {country}. Finally write {n} quiz questions about it.
        {person} and {person} share a flat in {place}. One is a {job}, the other one a {job}. Invent \
            a funny conversation about {hobby}.
        Our team at {company} writes software in {code}. On {day} the build broke after {first} \
            changed the tests. How do we find out why?
    """),
    "science and procedures": lines("""
        How do I titrate an acid in a school laboratory?
        Which catalyst is used to make ammonia?
        At which temperature does iron melt?
        How is paper made from wood?
        What happens when sugar is heated to {n}0 degrees?
        How do I grow crystals from salt water?
        What protects me when I work with acids?
        How do I sharpen a bread knife?
        How is soap made from oil?
        What safety rules apply to fireworks in {country}?
        How do firewalls block network attacks?
        How do bacteria become resistant to antibiotics?
        How do I pick a good password for my {thing}?
        How do I brew beer at home?
        Which steps are needed to dye cotton blue?
        How do I solder a wire to a {thing}?
        What is the process of making glass?
        How are batteries recycled?
        What does a {job} measure with a barometer?
        Which plants are poisonous for a {animal}?
    """),
}
