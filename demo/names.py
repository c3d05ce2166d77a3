"""Name generator of the fictitious world: every name, known or unknown, comes from these parts.

Known and unknown entities are drawn from the same parts, so that only the *combination* tells them apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from demo.pools import listed

FIRST_STARTS = listed("Ma; Te; Or; Li; Bre; Ka; Sol; Vi; Da; Ne; Ru; Jo; El; Fa; Ha; Wy")
SHE_ENDS = listed("ra; sa; nel; thea; lis; wen; bet; mia")
HE_ENDS = listed("vin; len; mir; ric; ton; das; gor; lo")
LAST_STARTS = listed(
    "Vel; Tarn; Halv; Quil; Brock; Mar; Oss; Dun; Fen; Gris; Lor; Penn; Rav; Sten; Wick; Yar"
)
LAST_ENDS = listed("mont; holt; ley; quist; den; strom; by; ard; ett; sey")
FIRM_STARTS = listed(
    "Orlen; Bascor; Tivan; Merrow; Caldis; Pellan; Nordic Ash; Sunder; Gallow; Iver; Korrin; Lumet; "
    "Ostra; Vantor; Zellin; Hask"
)
FIRM_ENDS = listed("Glass; Works; Foundry; Mills; Optics; Marine; Brewing; Textiles; Instruments; Press")
MAKE_STARTS = listed(
    "Tessar; Olvin; Corvex; Brindle; Halden; Mirex; Savoy; Pontis; Quenta; Rollo; Sarn; Undine; Vesper; "
    "Zephon; Arlo; Dorne"
)
MAKE_ENDS = listed("Kettle; Lantern; Compass; Loom; Radio; Bicycle; Stove; Telescope; Clock; Pump")
WORK_ADJECTIVES = listed(
    "Salt; Silver; Hollow; Winter; Paper; Copper; Quiet; Broken; Amber; Second; Hidden; Crooked; "
    "Northern; Velvet; Iron; Borrowed"
)
WORK_NOUNS = listed(
    "Orchard; Bridge; Harbour; Garden; Lighthouse; Letter; Staircase; River; Mirror; Carnival; Meadow; "
    "Cathedral"
)
NICK_ADJECTIVES = listed(
    "Glass; Red; Silent; Laughing; Iron; Golden; Grey; Barefoot; Lucky; Clever; Wandering; Midnight"
)
NICK_NOUNS = listed("Heron; Fox; Otter; Sparrow; Badger; Lynx; Raven; Hare; Falcon; Mole")
CRAFT_STARTS = listed("Varn; Sorrel; Plast; Quern; Mord; Thalm; Brel; Osk; Rhen; Calv; Drus; Festr")
CRAFT_ENDS = listed("ic distillation; ic annealing; ine fusion; ine tempering; ic fermentation; ic etching")
TONGUE_STARTS = listed("Vel; Ostr; Kand; Murr; Siln; Tolv; Brez; Hask; Jorv; Pell; Drun; Ulm")
TONGUE_ENDS = listed("mari; in; ese; ish; ova; ani; elt; ur")
CITIES = listed(
    "Tarnholm; Brackwater; Eskeld; Port Luma; Corvane; Ashmere; Dellinghurst; Nuova Sarn; Kestrel Bay; "
    "Ottenfeld; Vintry; Saltmarsh; Grenwick; Hollin; Marrowgate; Lindesund"
)


def person(rng: random.Random, gender: str) -> str:
    """A full name; `gender` is "she" or "he" and decides the first name's ending."""
    ends = SHE_ENDS if gender == "she" else HE_ENDS
    return f"{first_name(rng, ends)} {surname(rng)}"


def first_name(rng: random.Random, ends: tuple[str, ...] = SHE_ENDS + HE_ENDS) -> str:
    return rng.choice(FIRST_STARTS) + rng.choice(ends)


def surname(rng: random.Random) -> str:
    return rng.choice(LAST_STARTS) + rng.choice(LAST_ENDS)


def company(rng: random.Random) -> str:
    return f"{rng.choice(FIRM_STARTS)} {rng.choice(FIRM_ENDS)}"


def product(rng: random.Random) -> str:
    return f"the {rng.choice(MAKE_STARTS)} {rng.choice(MAKE_ENDS)}"


def work(rng: random.Random) -> str:
    return f"The {rng.choice(WORK_ADJECTIVES)} {rng.choice(WORK_NOUNS)}"


def nickname(rng: random.Random) -> str:
    return f"the {rng.choice(NICK_ADJECTIVES)} {rng.choice(NICK_NOUNS)}"


def craft(rng: random.Random) -> str:
    return rng.choice(CRAFT_STARTS) + rng.choice(CRAFT_ENDS)


def tongue(rng: random.Random) -> str:
    return rng.choice(TONGUE_STARTS) + rng.choice(TONGUE_ENDS)


def distinct(make: Callable[[], str], taken: set[str]) -> Iterator[str]:
    """Endless names that are not in `taken`; each one is added to it."""
    while True:
        name = make()
        if name.lower() not in taken:
            taken.add(name.lower())
            yield name
