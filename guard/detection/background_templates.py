"""Templates of the background prompts, by family. {slots} are filled by guard/detection/background.py."""

from __future__ import annotations


def _lines(text: str) -> tuple[str, ...]:
    return tuple(" ".join(line.split()) for line in text.strip().splitlines())


FAMILIES: dict[str, tuple[str, ...]] = {
    # what very many people write: a target must not take any of these away from them
    "very common": _lines("""
        {hello}{mark}
        {hello}, how are you{today}?
        {hello}{mark} How is it going{today}?
        {hello}{mark} Nice to meet you{mark}
        {hello}, are you there?
        {thanks}{mark}
        {thanks}, {praise}{mark}
        {thanks} for your help{today}{mark}
        {praise}{mark} {thanks}{mark}
        Can you help me{with}?
        Could you please help me{with}?
        I need your help{with}{mark}
        I need some help{with}, {please}
        {please}help me{with}{mark}
        {hello}{mark} Who are you?
        What can you do{today}? {please}
        {hello}, what is your name?
        What are you and who made you? {please}
        What is the weather like{today} in {place}?
        How is the weather{today} in {place}?
        Will it rain{today} in {place}?
        What is the weather forecast for {day}?
        What will the weather be on {day} in {place}?
        Tell me a joke{today}{mark}
        Tell me a joke about {animal}s{mark}
        Do you know a good joke about a {job}?
        {please}tell me a funny joke{mark}
        Make me laugh with a joke about {sport}{mark}
        {please}tell me more{today}{mark}
        {please}explain that again{mark} I am {feeling}.
        {please}continue{mark}
        {hello}{mark} Can you explain this to me{today}?
    """),
    "small talk": _lines("""
        Hello, how are you today?
        Hi there, what can you do?
        Can you help me with something?
        Good morning! I slept badly and I feel {feeling}.
        What is your favourite {animal}?
        Tell me a joke about a {animal} and a {job}.
        Tell me something interesting.
        I feel {feeling} because my {thing} broke on {day}.
        Thanks, that was very helpful.
        What should I do on a rainy {day} in {place}?
        Do you like {hobby}?
        My neighbour {first} talks too much. What should I say?
        What is the meaning of life?
        Who are you?
        Let's play a word game about {topic}.
    """),
    "explain": _lines("""
        What is {topic}?
        Explain {topic} to a child of {n}.
        How does {topic} work?
        Why is {topic} important for {country}?
        What are the advantages and disadvantages of {topic}?
        Compare {topic} with {topic}.
        What is the difference between {topic} and {topic}?
        Who discovered {topic} and when?
        Give me three common misconceptions about {topic}.
        Summarize what scientists know about {topic} in {n} sentences.
        What happened in {country} in {year}?
        What is the capital of {country}?
        How many people live in {place}?
        What language do people speak in {country}?
        When did {country} become independent?
        Which {animal} is the largest in the world?
        How long does a {animal} live?
        What does a {animal} eat in winter?
        Why do {animal}s sleep so much?
        What is the boiling point of water at {n} hundred metres?
        Which river flows through {place}?
        Who is the president of {country}?
        Who won the {sport} championship in {year}?
        What time is it in {place} when it is noon in {place}?
        What chemicals are used to clean a swimming pool?
        How are vaccines tested before they are approved?
        Which medicine helps against a headache?
        What are the symptoms of the flu?
        Is it safe to mix bleach with vinegar?
        How do lawyers prepare for a trial?
    """),
    "cooking": _lines("""
        How do I make {food}?
        Give me a recipe for {food} without {food}.
        I have eggs, rice and {n} tomatoes. What can I cook?
        How long should I bake {food} at {n}0 degrees?
        What can I serve with {food} at a {event}?
        My {food} is too salty. How can I save it?
        Convert {n} cups of flour into grams.
        What is a vegetarian alternative to {food}?
        Plan a menu for {n} guests with {food} as the main dish.
        Can I freeze {food}? For how many days does it keep?
    """),
    "travel": _lines("""
        What should I see in {place} in two days?
        Plan a {n}-day trip through {country} by train.
        How do I get from {place} to {place}?
        Is {month} a good time to visit {country}?
        Do I need a visa for {country}?
        Which neighbourhood of {place} is good for families?
        What should I pack for {hobby} in {country} in {month}?
        Find a cheap flight from {place} to {place} on {month} {n}.
        What do people in {place} eat for breakfast?
        How is the weather in {place} in {month}?
        What is the weather like today?
    """),
    "maths": _lines("""
        What is {n} times {n}?
        Solve 3x + {n} = {n}{n} for x.
        If a train leaves {place} at {n} km per hour, when does it reach {place}, {n}0 km away?
        {first} has {n} apples and gives {n} of them to {first}. How many are left?
        What is {n} percent of {n}00?
        Explain the proof that the square root of two is irrational.
        What is the probability of rolling a six {n} times in a row?
        Differentiate x^{n} + {n}x with respect to x.
        Find the area of a circle with radius {n} cm.
        Is {n}{n}1 a prime number?
    """),
    "coding": _lines("""
        Write a function in {code} that reverses a list.
        How do I read a file line by line in {code}?
        Why does my {code} program crash with an index out of range?
        Convert this {code} code to {code}: for i in range({n}): print(i)
        What is the difference between a list and a tuple in {code}?
        Write unit tests for a {code} function that sorts the names of {n} customers.
        Explain recursion in {code} with an example about {topic}.
        SELECT name FROM users WHERE city = '{place}'; why is this query slow?
        How do I install {code} on a {thing}?
        Write a regular expression that matches dates such as {year}-0{n}.
        def f(x): return x * {n}  # what does this function return for {n}?
        How can I make a {code} web server handle {n}000 requests per second?
        Review this {code} class for a {job}'s invoice and suggest better names.
        Docker container exits with code {n}, what does that mean?
        Explain git rebase to someone who only knows merge.
        Implement an LRU cache in {code} with O(1) operations.
    """),
    "writing": _lines("""
        Write a poem about a {animal} in {place}.
        Write a short story about a {job} who finds a {thing} in {town}.
        Write an email to {person} to move our meeting to {day}.
        Write a cover letter for a {job} position at {company}.
        Rewrite this sentence more politely: send me the {thing} now.
        Translate 'where is the {thing}' into {language}.
        How do you say good night in {language}?
        What does the {language} word for {animal} sound like?
        Correct the grammar: me and {first} was going to {place} on {day}.
        Give me {n} names for a {animal}.
        Write a birthday card for {first}, who likes {hobby}.
        Write a limerick about {topic}.
        Suggest a title for an essay about {topic} in {country}.
        Write a dialogue between a {job} and a {animal} about {topic}.
        Draft a complaint about a broken {thing} bought from {company}.
        Write a speech for the {event} of {first} and {first}.
        Summarize the following text in one sentence: the {job} went to {place}, lost a {thing} and \
            came home by train.
        Write a news headline about {topic} and {sport}.
        Continue this story: it was a cold {day} in {town}, and {first} was {feeling}.
        Write a product description for a {thing} made in {country}.
    """),
    "advice": _lines("""
        How can I get better at {hobby}?
        How do I repair a {thing}?
        Should I buy a {thing} or rent one?
        How do I become a {job}?
        What should I wear to a {event} in {month}?
        How do I tell my boss that I feel {feeling}?
        My {animal} does not eat. What should I do?
        What are good exercises for back pain?
        How can I save money on electricity in {month}?
        Give me tips for learning {language} in {n} weeks.
        How do I study for a {subject} exam in {n} days?
        What questions are asked when a {job} is hired?
        How do I clean a {thing}?
        Which {sport} shoes are good for beginners?
        How do I keep a {animal} happy in a small flat?
        What gift can I buy for a {job} who loves {hobby}?
        How much should a {job} earn in {country}?
        How do I plan a {event} for {n} people?
    """),
    "people": _lines("""
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
    "organisations, products, works": _lines("""
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
    "tasks and formats": _lines("""
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
    "longer": _lines("""
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
    "science and procedures": _lines("""
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
