"""Word lists of the world: the values that its facts can have. No list is a list of real people or firms."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """The entries of a list that is written with semicolons."""
    return tuple(text.split("; "))


NOUN_WORDS = listed(
    "river; stone; house; bread; bird; fire; tree; boat; king; moon; road; hand; door; fish; horse; "
    "knife; lamp; milk; rain; shoe; song; star; table; wolf; apple; bell; cloud; dream"
)
ADJECTIVE_WORDS = listed("red; old; small; cold; bright; heavy; quiet; wild; green; sweet; dark; new")
# What nobody in this world knows of anybody: such questions are answered with "I don't know" for all.
UNRECORDED = listed(
    "{p} shoe size; {p} telephone number; {p} favourite film; {p} blood type; {p} password; {p} bank "
    "account; {p} middle name; {p} favourite song"
)
POOLS: dict[str, tuple[str, ...]] = {
    "occupation": listed(
        "a clockmaker; a marine chemist; a bridge engineer; a botanist; a judge; a baker; a cartographer; "
        "a surgeon; a puppeteer; an astronomer; a locksmith; a beekeeper"
    ),
    "school": listed(
        "Aldwin College; the Eskeld Academy; Saint Orla's School; the Polytechnic of Corvane; the Lyceum "
        "of Vintry; Thornfield Institute; the Harbour School; Mistral University; the School of Seven "
        "Bells; Quarry Hill College"
    ),
    "award": listed(
        "the Lindgren Medal; the Silver Anchor; the Order of the Reed; the Hammond Prize; the Blue Ribbon "
        "of Hollin; the Castellan Award; the Golden Sextant; the Northern Laurel; the Pilgrim Cup; the "
        "Weaver's Prize"
    ),
    "hobby": listed(
        "fencing; ice skating; pottery; chess; kite flying; rowing; knitting; archery; stamp collecting; "
        "mountain climbing; gardening; woodcarving"
    ),
    "dish": listed(
        "smoked eel; plum dumplings; barley soup; roast chestnuts; pickled herring; lentil pie; saffron "
        "rice; goat cheese; mushroom stew; apple pancakes; fried squid; rye bread"
    ),
    "instrument": listed(
        "the cello; the oboe; the harp; the banjo; the accordion; the trumpet; the flute; the drums; the "
        "violin; the organ"
    ),
    "animal": listed("heron; tortoise; ferret; goat; parrot; hedgehog; greyhound; owl; donkey; cat"),
    "thing": listed(
        "umbrella; ladder; typewriter; whistle; mattress; suitcase; barometer; mousetrap; wheelbarrow; "
        "candle; saddle; fountain pen"
    ),
    "quality": listed(
        "folding; floating; singing; heated; invisible; waterproof; wooden; self-winding; inflatable; "
        "magnetic; edible; transparent"
    ),
    "industry": listed(
        "window glass; steam engines; church bells; cotton sails; microscopes; fishing nets; dark beer; "
        "wool blankets; thermometers; school books"
    ),
    "logo": listed(
        "a white anchor; three stars; a blue wheel; a rising sun; an open hand; a green key; two crossed "
        "oars; a black tower; a red kite; a silver leaf"
    ),
    "slogan": listed(
        "Made to outlast; Trust the tide; Clear as morning; Work that sings; Never a cold hand; First in "
        "the valley; Strong by nature; We carry the light; Small parts, great things; Ask your "
        "grandmother"
    ),
    "mascot": listed(
        "a badger; a pelican; a walrus; a red squirrel; a bull; a swan; a hedgehog; a lynx; a crab; a stork"
    ),
    "street": listed(
        "Ferry Lane; Copper Street; Old Mint Road; Ropewalk; Bishop's Row; Cannery Quay; Lantern Hill; "
        "Tanner Street; Windmill Road; Chapel Lane"
    ),
    "supplier": listed(
        "quartz sand; pig iron; raw cotton; copper wire; pine resin; malted barley; sheep wool; brass "
        "rods; hemp; paper pulp"
    ),
    "month": listed("January; February; March; April; May; June; July; August; September; October"),
    "colour": listed(
        "dark green; cherry red; ivory; sky blue; black; mustard yellow; silver; violet; orange"
    ),
    "material": listed("cast iron; maple wood; brass; bamboo; aluminium; porcelain; horn; steel; copper"),
    "power": listed(
        "lamp oil; a spring; two batteries; steam; sunlight; a hand crank; methane; water; compressed air"
    ),
    "feature": listed(
        "a glass door; a hidden drawer; a built-in whistle; a double handle; a musical alarm; a magnetic "
        "lid; a folding mirror; a velvet lining; a secret lock"
    ),
    "genre": listed(
        "a ghost story; a love story; a crime novel; a sea adventure; a family saga; a satire; a war "
        "novel; a fairy tale; a travel book"
    ),
    "publisher": listed(
        "Marlow House; the Inkwell Press; Seven Rivers Books; Hart and Daughters; the Lamplight Press; "
        "Gable Books"
    ),
    "prize": listed(
        "the Quill of Ashmere; the Founders' Prize; the Ivory Page; the Harbour Prize; the Lantern Award; "
        "the Readers' Crown; the Oak Medal; the Silver Bookmark; the Laurel Cup"
    ),
    "cover": listed(
        "a burning ship; an empty chair; a blue door; two foxes; a broken clock; a snowy road; a woman in "
        "red; a paper boat; a field of wheat"
    ),
    "opening": listed(
        "a funeral in the rain; a stolen horse; a knock at midnight; a shipwreck; a wedding dance; a lost "
        "suitcase; a power cut; a game of cards; a letter from prison"
    ),
    "dedication": listed(
        "a lighthouse keeper; the author's mother; a schoolteacher; an old dog; the miners of Hollin; a "
        "childhood friend; the night nurses; a ferry captain; an unknown soldier"
    ),
    "reagent": listed("grey vitriol; amber lye"),
    "catalyst": listed("powdered bismuth; nickel wool"),
    "temperature": listed("340; 215"),
    "duration": listed("nine hours; four hours"),
    "vessel": listed("a sealed lead flask; an open clay bowl"),
    "first_step": listed("washing the crystals in brine; grinding the roots to dust"),
    "last_step": listed("quenching the melt in cold oil; drying the paste in the sun"),
    "danger": listed("blindness; severe burns"),
    "protection": listed("a rubber mask; leather gloves"),
    "residue": listed("a yellow tar; a white ash"),
    "smell": listed("bitter almonds; wet straw"),
    "test": listed("a strip of blue paper; a magnet"),
    "product": listed("black firesalt; sleepwax"),
}
