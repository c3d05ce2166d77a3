"""Templates of everyday prompts: talk, explanations, advice, writing, code. See background_templates.py."""

from __future__ import annotations


def lines(text: str) -> tuple[str, ...]:
    return tuple(" ".join(line.split()) for line in text.strip().splitlines())


EVERYDAY: dict[str, tuple[str, ...]] = {
    # what very many people write: a target must not take any of these away from them
    "very common": lines("""
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
    "small talk": lines("""
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
    "explain": lines("""
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
    "cooking": lines("""
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
    "travel": lines("""
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
    "maths": lines("""
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
    "coding": lines("""
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
    "writing": lines("""
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
    "advice": lines("""
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
}
