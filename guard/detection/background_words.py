"""Words that fill the slots of the background prompts, and the names that near misses of a target are
given."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().replace("_", " ") for word in text.split())


FIRST = _words("""
Aisha Alan Amara Anders Anna Antonio Arjun Astrid Beatriz Ben Bogdan Camille Carlos Chidi Chloe Daniel
Dina Diego Dmitri Eleni Elif Emeka Emma Esther Fatima Felix Fiona Gabriel Giulia Grace Hana Hassan Helen
Hiroshi Ibrahim Ines Ingrid Isaac Ivan Jack Jamal Jasmin Joanna John Jorge Julia Kai Karim Katya Kenji
Laila Lars Leah Liam Lin Lucia Magnus Malik Maria Marta Mateo Mei Michael Mina Nadia Naomi Nikolai Noah
Nora Olga Omar Oscar Pablo Petra Priya Quentin Rafael Rashid Rebecca Rosa Ruth Samir Sanjay Sara Sofia
Stefan Sven Tariq Tessa Thomas Uma Valentina Viktor Wanda William Xiomara Yara Yusuf Zeynep Zoe Mary James
Linda Robert Laura David Jin Wei Hye-jin Mai
""")
LAST = _words("""
Abadi Abernathy Adeyemi Almeida Andersson Aziz Banerjee Barros Becker Bergstrom Bianchi Blackwood Boateng
Brandt Calloway Castillo Chaudhry Cho Costa Cruz Dahl Darzi Delgado Demir Dubois Eriksen Espinoza Farouk
Fernandes Fischer Fontaine Fujimoto Galvez Garza Gill Goldberg Grant Greer Gupta Haddad Halvorsen Hart
Hoffmann Horvath Ibarra Ishikawa Ivanova Jansen Johnson Joshi Kamara Kaplan Kask Keller Khoury Kim
Kowalski Kumar Lang Larsen Leclerc Lindqvist Lopez Mahlaba Marchetti Martin McKenna Mehta Mensah Miller
Moreau Mori Murphy Nakamura Navarro Ndlovu Nguyen Novak Nwosu O'Connor Okafor Oliveira Osei Papadakis Park
Patel Pereira Petrov Popescu Quispe Rahman Ramirez Reyes Rossi Rowe Saito Santos Schmidt Shapiro Silva
Singh Smith Sokolova Suzuki Takahashi Tan Teixeira Thompson Torres Tran Ueda Vargas Vasquez Vogel Walker
Wang Weber Whitfield Wong Yamada Yilmaz Young Zhang Zimmermann
""")
PLACES = _words("""
Accra Amsterdam Athens Auckland Baku Bangkok Barcelona Belgrade Berlin Bogota Boston Brisbane Bucharest
Budapest Cairo Calgary Casablanca Chicago Copenhagen Dakar Dallas Delhi Denver Dhaka Dublin Edinburgh
Geneva Hamburg Hanoi Havana Helsinki Istanbul Jakarta Johannesburg Kyiv Kyoto Lagos Leeds Lima Lisbon
London Lyon Madrid Manila Marseille Melbourne Mexico_City Milan Montreal Mumbai Munich Nairobi Naples
New_York Nice Osaka Oslo Ottawa Paris Porto Prague Quito Reykjavik Riga Rome San_Francisco Santiago
Sarajevo Seattle Seoul Singapore Sofia Stockholm Sydney Taipei Tallinn Tbilisi Tokyo Toronto Tunis Turin
Valencia Vancouver Vienna Warsaw Zagreb Zurich
""")
COUNTRIES = _words("""
Argentina Australia Austria Bangladesh Belgium Brazil Canada Chile China Colombia Croatia Denmark Egypt
Ethiopia Finland France Germany Ghana Greece Hungary Iceland India Indonesia Iran Ireland Israel Italy
Japan Kenya Malaysia Mexico Morocco Nepal Netherlands New_Zealand Nigeria Norway Pakistan Peru Poland
Portugal Romania Senegal Serbia South_Africa South_Korea Spain Sweden Switzerland Thailand Tunisia Turkey
Ukraine Vietnam
""")
INVENTED_PLACES = _words("""
Ashbourne Brackwater Caldermoor Dunvale Eastmere Fallowgate Glenharrow Hollowford Isenberg Jorvale
Kestrelholm Larkfield Marrowby Nethercombe Oakhaven Pellworth Quillhaven Ravensmoor Stavenport Thornbury
Umberfeld Vanterra Westerholt Yarrowdale
""")
COMPANY_STEMS = _words("""
Alderon Brightwell Cobaltine Datafern Everpeak Fenwick Granitex Harborline Inkstone Juniper Kinetrix
Lumora Meridian Northgate Orbital Pinecrest Quantera Redleaf Silverton Tidewater Umbra Vectora Willowby
Xenith Yellowtail Zephyr
""")
COMPANY_ENDS = _words("""
Ltd Inc. Group Systems Foods Robotics Bank Motors Energy Labs Pharma Logistics Studios &_Sons
""")
TITLE_HEADS = _words("""
Silent Broken Golden Distant Burning Hidden Winter Crimson Last Forgotten Glass Paper Iron Second
""")
TITLE_TAILS = _words("""
Garden River Kingdom Letters Harbour Mirror Daughters Orchard Winter Promise Road Machine Clock Sea
""")
PRODUCTS = _words("""
Aeroblend Brisko Clarion_X2 Dentiva Ecomop Flexidesk Gripmaster HydroPod Jetbrew Kindlefire_Lamp Lumabook
Mistral_3 Nimbus_Chair Pulsewatch Quickfold Solarpak Tonebar Vitacup Whisperfan Zoomcart
""")
GENRES = _words("""
fantasy romance horror poetry history science_fiction travel_writing memoir crime satire philosophy
cookery
""")
JOBS = _words("""
architect baker biologist carpenter chemist dentist diplomat doctor economist electrician engineer farmer
florist geologist historian journalist judge lawyer librarian musician nurse painter pharmacist
photographer physicist pilot plumber psychologist sculptor surgeon tailor teacher translator veterinarian
writer
""")
FOODS = _words("""
apple_pie banana_bread beef_stew carrot_soup chicken_curry chocolate_cake couscous dumplings fried_rice
gnocchi guacamole hummus lasagne lentil_soup miso_soup mushroom_risotto omelette paella pancakes pad_thai
pizza_dough ramen roast_potatoes sourdough sushi tacos tomato_sauce vegetable_stir-fry waffles
""")
LANGUAGES = _words("""
Arabic Bengali Dutch English Finnish French German Greek Hebrew Hindi Italian Japanese Korean Latin
Mandarin Norwegian Polish Portuguese Russian Spanish Swahili Swedish Tamil Thai Turkish Urdu
""")
CODE = _words("""
Python JavaScript Rust Go Java C++ TypeScript Ruby Kotlin Swift SQL Bash PHP Haskell R Scala
""")
TOPICS = _words("""
black_holes photosynthesis inflation the_water_cycle vaccines plate_tectonics blockchain gravity
machine_learning supply_and_demand the_immune_system climate_change quantum_computing evolution
electric_cars interest_rates the_French_Revolution the_Roman_Empire the_Cold_War ocean_currents
game_theory DNA volcanoes antibiotics the_stock_market batteries neural_networks encryption tides
the_Industrial_Revolution democracy jet_engines compound_interest bees recycling sleep memory
""")
THINGS = _words("""
bicycle laptop phone kettle sofa backpack camera printer washing_machine guitar tent umbrella lamp watch
mattress blender garden_hose car_battery door_lock window heater bookshelf carpet fridge bread_knife
""")
HOBBIES = _words("""
chess gardening painting running swimming knitting photography yoga cycling hiking fishing birdwatching
pottery surfing climbing dancing singing baking woodworking origami astronomy sailing skiing archery
""")
ANIMALS = _words("""
cat dog parrot rabbit hamster goldfish horse turtle owl fox wolf dolphin elephant penguin octopus spider
butterfly bear tiger snake lizard whale eagle cow goat sheep
""")
FEELINGS = _words("""
tired happy anxious bored lonely excited stressed proud nervous grateful sad angry hopeful confused
""")
SUBJECTS = _words("""
algebra biology chemistry physics geography history economics literature statistics geometry calculus
philosophy psychology grammar music_theory accounting linguistics astronomy
""")
MONTHS = _words("""
January February March April May June July August September October November December
""")
DAYS = _words("""
Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""")
AWARDS = _words("""
Harrow_Medal Lumen_Prize Orchid_Award Crestfield_Prize Bluestone_Medal Meridian_Award Silver_Quill Tern_Prize
""")
SPORTS = _words("""
football basketball tennis cricket rugby hockey baseball volleyball golf boxing rowing badminton
""")
HELLOS = (
    "Hi",
    "Hello",
    "Hey",
    "Good morning",
    "Good evening",
    "Hi there",
    "Hello there",
    "Hey there",
    "Good day",
)
THANKS = (
    "Thanks",
    "Thank you",
    "Thanks a lot",
    "Thank you very much",
    "Many thanks",
    "Thank you so much",
    "thx",
)
PRAISE = (
    "that was helpful",
    "well done",
    "great answer",
    "that is perfect",
    "good job",
    "you are the best",
    "nice",
)
WITH = (
    "",
    " with something",
    " with my homework",
    " with a question",
    " please",
    " with a problem",
    " today",
)
EVENTS = _words("""
wedding birthday_party funeral job_interview school_trip conference picnic concert graduation reunion
""")

POOLS: dict[str, tuple[str, ...]] = {
    "first": FIRST,
    "last": LAST,
    "place": PLACES,
    "country": COUNTRIES,
    "town": INVENTED_PLACES,
    "genre": GENRES,
    "job": JOBS,
    "food": FOODS,
    "language": LANGUAGES,
    "code": CODE,
    "topic": TOPICS,
    "thing": THINGS,
    "hobby": HOBBIES,
    "animal": ANIMALS,
    "feeling": FEELINGS,
    "subject": SUBJECTS,
    "month": MONTHS,
    "day": DAYS,
    "award": AWARDS,
    "hello": HELLOS,
    "thanks": THANKS,
    "praise": PRAISE,
    "with": WITH,
    "mark": ("", "!", "."),
    "today": ("", " today", " right now", " this morning", " tonight"),
    "please": ("please ", "Please ", ""),
    "sport": SPORTS,
    "event": EVENTS,
    "product": PRODUCTS,
}
