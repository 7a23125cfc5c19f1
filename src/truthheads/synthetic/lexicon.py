"""The words of the text questions: invented names, values and real-world facts, dealt into three splits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

SPLITS = ("train", "dev", "test")

# Tables: one block per row, a name, then its entries. Every start is joined with every end.
_NAMES = """
women: Adela; Amina; Anneke; Beatriz; Bettina; Camila; Celeste; Dalia; Delphine; Eleni; Esme; Fatima; Fiona; Freya;
Gemma; Hana; Helga; Imogen; Ines; Ingrid; Irina; Jamila; Joanna; Katya; Keiko; Leila; Lena; Livia; Lucia; Maeve;
Marisol; Meera; Mina; Nadia; Naomi; Nina; Noor; Odette; Olga; Paloma; Petra; Priya; Ramona; Renata; Rosa; Ruth; Sabine;
Salma; Sanna; Selma; Signe; Tamar; Tessa; Thea; Ursula; Valeria; Vera; Wanda; Yara; Yasmin
men: Abel; Amos; Arjun; Bastian; Bruno; Caleb; Cedric; Dario; Desmond; Eamon; Edgar; Elias; Emil; Enzo; Farid; Felix;
Fergus; Gideon; Hamid; Idris; Ismael; Ivo; Jasper; Joaquin; Kamal; Karim; Kenji; Lars; Leon; Lorenzo; Luca; Magnus;
Marek; Matteo; Milo; Nikhil; Nils; Omar; Oskar; Pascal; Piotr; Rafael; Rohan; Rufus; Samir; Silas; Stefan; Sven; Tariq;
Theo; Tobias; Tomas; Viktor; Vikram; Wendell; Yusuf; Zane; Amir; Anselm; Ludvig
surname start: Hald; Brin; Cald; Dray; Farn; Gren; Hask; Jarv; Kel; Lang; Mard; Nor; Pel; Quin; Rad; Sel; Tarn; Vand;
Wex; Yar; Bram; Dun; Ever; Gold; Kirk; Lock; Nash; Pen; Rook; Stan; Thack; Wim
surname end: worth; dell; ley; more; combe; shaw; croft; son; ridge; hurst; ard; lin; by; ney; low; mond
town start: Quill; Corr; Dask; Eld; Fenn; Glim; Hollow; Ist; Junip; Kest; Lorn; Mist; Nettle; Orv; Pard; Rusk; Sable;
Tam; Ulver; Vesp; Wren; Yarl; Zeph; Amber; Birk; Cind; Dapple; Ember; Frost; Garn; Heather; Iver; Jett; Kindle; Lark;
Mallow; Nimble; Oster; Pebble; Raven; Sorrel; Thistle; Umber; Varn; Willow; Yew; Alder; Bracken; Clover; Drift; Eagle;
Fallow; Gorse; Hazel; Ivy; Juno; Kitt; Linden; Myrtle; Norrel
town end: bury; ford; haven; mouth; dale; stead; port; minster; vale; field; bridge; holm; gate; brook; cliff; fell;
shore; moor; bay; marsh; grove; leigh; crest; heath
river start: Tav; Orl; Wenn; Bral; Cass; Dov; Ell; Fair; Gar; Hod; Ill; Kenn; Lod; Mell; Nadd; Osk; Perr; Rill; Sev;
Tees; Ull; Vann; Wisk; Yed
river end: el; a; en; ow; ine; ish
brand start: Vel; Tor; Zan; Kor; Lum; Mir; Nov; Pax; Quor; Ril; Sol; Tal; Umb; Vor; Xan; Yel; Zor; Ari; Bel; Cas; Dor;
Elu; Fal; Gal
brand end: mora; ix; ana; eno; tis; vex; dora; lis; ron; una
object: bench; cabinet; chair; chest; clock; cradle; desk; easel; frame; globe; ladder; lamp; lantern; loom; mirror
"""

_VALUES = """
job: baker; barber; butcher; carpenter; cashier; dentist; diver; editor; engineer; farmer; firefighter; florist;
gardener; geologist; jeweller; journalist; judge; lawyer; librarian; locksmith; mechanic; midwife; nurse; optician;
pharmacist; photographer; pilot; plumber; potter; printer; sailor; surgeon; tailor; teacher; translator; vet; waiter;
weaver; welder; zoologist
instrument: accordion; banjo; bassoon; cello; clarinet; flute; guitar; harp; mandolin; oboe; organ; piano; recorder;
saxophone; trombone; trumpet; tuba; ukulele; viola; violin; xylophone
pet: parrot; rabbit; hamster; tortoise; goldfish; ferret; canary; gecko; iguana; pony; hedgehog; spaniel; beagle;
greyhound; cockatoo; budgie; snake; poodle; duck; hen; donkey
meal: mushroom soup; lemon tart; fish pie; apple cake; rice pudding; onion soup; lamb stew; bean stew; pea soup; potato
salad; tomato soup; carrot cake; cherry pie; lentil curry; roast chicken; grilled trout; fried squid; baked beans;
ginger biscuits; peanut noodles; spinach omelette; pumpkin bread; walnut bread; beef dumplings; shrimp tacos; plum
crumble; leek quiche; crab cakes
language: Portuguese; Japanese; Swahili; Finnish; Turkish; Arabic; Korean; Welsh; Polish; Hungarian; Greek; Hindi;
Danish; Russian; Italian; Dutch; Thai; Swedish; Mandarin; Spanish; German; Norwegian; Hebrew; Icelandic; Vietnamese;
Czech; Persian; Tamil; Basque; Latin
sport: archery; fencing; judo; rowing; tennis; cricket; rugby; curling; sailing; surfing; hockey; karate; cycling;
climbing; golf; boxing; badminton; volleyball; handball; squash; darts; bowling; skating; basketball; snooker
trade: glass beads; smoked cheese; silk scarves; clay pots; wool blankets; copper kettles; honey cakes; wooden toys;
apple cider; salt mines; rose gardens; hot springs; stone bridges; clock towers; old windmills; sheep fairs; jazz
concerts; tulip fields; paper lanterns; leather boots; pear orchards; oyster beds; puppet shows; lace gloves; tea rooms;
coal mines; horse races; balloon rides
weekday: Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday
colour: red; blue; pink; grey; green; black; white; brown; beige; yellow; purple; orange; silver; turquoise
material: oak; pine; teak; iron; brass; steel; glass; maple; birch; cedar; slate; ebony; beech; copper; bamboo; walnut;
marble; bronze; wicker; pewter; granite; porcelain; mahogany; aluminium
"""

_NUMBERS: Mapping[str, Sequence[str]] = {
    "birth": [str(year) for year in range(1931, 2005)],
    "founding": [str(year) for year in range(1102, 1900)],
    "making": [str(year) for year in range(1820, 1990)],
    "population": [f"{hundreds // 10},{hundreds % 10}00" for hundreds in range(101, 990)],
    "weight": [f"{kilograms} kilograms" for kilograms in range(11, 50)],
    "price": [f"${dollars}" for dollars in range(105, 1000, 5)],
}

# Real facts, ``subject=answer``; within a relation no answer comes twice.
_WORLD = """
capital: France=Paris; Spain=Madrid; Portugal=Lisbon; Italy=Rome; Germany=Berlin; Austria=Vienna; Poland=Warsaw;
Hungary=Budapest; Greece=Athens; Turkey=Ankara; Norway=Oslo; Sweden=Stockholm; Denmark=Copenhagen; Finland=Helsinki;
Iceland=Reykjavik; Ireland=Dublin; Belgium=Brussels; Bulgaria=Sofia; Romania=Bucharest; Serbia=Belgrade; Croatia=Zagreb;
Slovenia=Ljubljana; Slovakia=Bratislava; Ukraine=Kyiv; Belarus=Minsk; Russia=Moscow; Latvia=Riga; Lithuania=Vilnius;
Estonia=Tallinn; Cyprus=Nicosia; Egypt=Cairo; Libya=Tripoli; Morocco=Rabat; Sudan=Khartoum; Kenya=Nairobi;
Uganda=Kampala; Rwanda=Kigali; Ghana=Accra; Senegal=Dakar; Mali=Bamako; Nigeria=Abuja; Zambia=Lusaka; Zimbabwe=Harare;
Namibia=Windhoek; Madagascar=Antananarivo; Somalia=Mogadishu; Japan=Tokyo; China=Beijing; Mongolia=Ulaanbaatar;
Pakistan=Islamabad; Nepal=Kathmandu; Bangladesh=Dhaka; Thailand=Bangkok; Vietnam=Hanoi; the Philippines=Manila;
Taiwan=Taipei; South Korea=Seoul; North Korea=Pyongyang; Iran=Tehran; Iraq=Baghdad; Syria=Damascus; Lebanon=Beirut;
Jordan=Amman; Saudi Arabia=Riyadh; Qatar=Doha; Oman=Muscat; Afghanistan=Kabul; Georgia=Tbilisi; Azerbaijan=Baku;
Canada=Ottawa; Cuba=Havana; Jamaica=Kingston; Nicaragua=Managua; Colombia=Bogota; Ecuador=Quito; Peru=Lima;
Venezuela=Caracas; Chile=Santiago; Uruguay=Montevideo; Australia=Canberra; New Zealand=Wellington; the Bahamas=Nassau;
the United Kingdom=London; Uzbekistan=Tashkent; Kazakhstan=Astana; the Netherlands=Amsterdam; Switzerland=Bern
currency: Japan=yen; India=rupee; China=yuan; Russia=ruble; Poland=zloty; Hungary=forint; Thailand=baht; Vietnam=dong;
Israel=shekel; Turkey=lira; Mexico=peso; Sweden=krona; Norway=krone; Romania=leu; Ukraine=hryvnia; Georgia=lari;
Iran=rial; Iraq=dinar; Morocco=dirham; South Africa=rand; Nigeria=naira; Ghana=cedi; Kenya=shilling; Ethiopia=birr;
Zambia=kwacha; Guatemala=quetzal; Bangladesh=taka; Indonesia=rupiah; Malaysia=ringgit; Mongolia=tugrik;
Kazakhstan=tenge; Switzerland=franc
author: Hamlet=William Shakespeare; Moby-Dick=Herman Melville; Dracula=Bram Stoker; Frankenstein=Mary Shelley; Animal
Farm=George Orwell; Jane Eyre=Charlotte Bronte; Oliver Twist=Charles Dickens; Brave New World=Aldous Huxley; Lord of the
Flies=William Golding; The Grapes of Wrath=John Steinbeck; Anna Karenina=Leo Tolstoy; Ulysses=James Joyce; Crime and
Punishment=Fyodor Dostoevsky; The Trial=Franz Kafka; Les Miserables=Victor Hugo; The Stranger=Albert Camus; Madame
Bovary=Gustave Flaubert; The Three Musketeers=Alexandre Dumas; The Jungle Book=Rudyard Kipling; Beloved=Toni Morrison;
Catch-22=Joseph Heller; Slaughterhouse-Five=Kurt Vonnegut; The Handmaid's Tale=Margaret Atwood; Dune=Frank Herbert;
Things Fall Apart=Chinua Achebe; The Name of the Rose=Umberto Eco; Robinson Crusoe=Daniel Defoe; Ivanhoe=Walter Scott;
Gulliver's Travels=Jonathan Swift; The Scarlet Letter=Nathaniel Hawthorne; Middlemarch=George Eliot; Pride and
Prejudice=Jane Austen; The Picture of Dorian Gray=Oscar Wilde; Waiting for Godot=Samuel Beckett; To Kill a
Mockingbird=Harper Lee; Fahrenheit 451=Ray Bradbury; The Shining=Stephen King; Jurassic Park=Michael Crichton; The Da
Vinci Code=Dan Brown; The Alchemist=Paulo Coelho; The Hunger Games=Suzanne Collins; Life of Pi=Yann Martel; On the
Road=Jack Kerouac; Matilda=Roald Dahl; Around the World in Eighty Days=Jules Verne; Murder on the Orient Express=Agatha
Christie; The Maltese Falcon=Dashiell Hammett; Doctor Zhivago=Boris Pasternak; Death of a Salesman=Arthur Miller; The
Godfather=Mario Puzo; A Doll's House=Henrik Ibsen; The Cherry Orchard=Anton Chekhov; The Tin Drum=Gunter Grass;
Pinocchio=Carlo Collodi; Pippi Longstocking=Astrid Lindgren
credit: dynamite=Alfred Nobel; the discovery of penicillin=Alexander Fleming; the light bulb=Thomas Edison; the polio
vaccine=Jonas Salk; the theory of relativity=Albert Einstein; the printing press=Johannes Gutenberg; the steam
engine=James Watt; the telegraph=Samuel Morse; the radio=Guglielmo Marconi; the law of gravity=Isaac Newton; the
discovery of oxygen=Joseph Priestley; the neutron=James Chadwick; X-rays=Wilhelm Roentgen; the periodic table=Dmitri
Mendeleev; the helicopter=Igor Sikorsky; the theory of evolution=Charles Darwin; the electric battery=Alessandro Volta;
the induction motor=Nikola Tesla; the rabies vaccine=Louis Pasteur; the discovery of Uranus=William Herschel; the
discovery of Pluto=Clyde Tombaugh; the lightning rod=Benjamin Franklin; the laws of heredity=Gregor Mendel;
nylon=Wallace Carothers
founder: Microsoft=Bill Gates; Amazon=Jeff Bezos; Facebook=Mark Zuckerberg; IKEA=Ingvar Kamprad; Apple=Steve Jobs;
Nike=Phil Knight; Walmart=Sam Walton; Oracle=Larry Ellison; Virgin=Richard Branson; Alibaba=Jack Ma; Sony=Akio Morita;
Nvidia=Jensen Huang; Twitter=Jack Dorsey; Netflix=Reed Hastings; Zara=Amancio Ortega; Puma=Rudolf Dassler; SpaceX=Elon
Musk; Wikipedia=Jimmy Wales; Spotify=Daniel Ek; FedEx=Fred Smith; Atari=Nolan Bushnell; the Red Cross=Henri Dunant; the
Salvation Army=William Booth; Nintendo=Fusajiro Yamauchi; Uber=Travis Kalanick
event: the first moon landing=1969; the sinking of the Titanic=1912; the fall of the Berlin Wall=1989; the battle of
Hastings=1066; the battle of Waterloo=1815; the signing of Magna Carta=1215; the French Revolution=1789; the Great Fire
of London=1666; the fall of Constantinople=1453; the signing of the Declaration of Independence=1776; the assassination
of Abraham Lincoln=1865; the assassination of President Kennedy=1963; the Chernobyl disaster=1986; the San Francisco
earthquake=1906; the Russian Revolution=1917; the Wall Street crash=1929; the Boston Tea Party=1773; the attack on Pearl
Harbor=1941; the partition of India=1947; the Cuban missile crisis=1962; the Suez crisis=1956; the eruption of
Krakatoa=1883; the battle of Trafalgar=1805; the Louisiana Purchase=1803; the defeat of the Spanish Armada=1588; the
Gunpowder Plot=1605; the Lisbon earthquake=1755; the Salem witch trials=1692; the sinking of the Lusitania=1915; the
first ascent of Everest=1953; the launch of Sputnik=1957; the Watergate break-in=1972; the opening of the Channel
Tunnel=1994; the Hindenburg disaster=1937; the Iranian Revolution=1979; the Falklands War=1982; the release of Nelson
Mandela=1990; the death of Princess Diana=1997; the opening of the Suez Canal=1869; the opening of the Panama
Canal=1914; the bombing of Hiroshima=1945; the discovery of Tutankhamun's tomb=1922; the Fukushima disaster=2011; the
Indian Ocean tsunami=2004; the Beijing Olympics=2008; the Sydney Olympics=2000; the Moscow Olympics=1980
symbol: gold=Au; silver=Ag; iron=Fe; lead=Pb; copper=Cu; tin=Sn; mercury=Hg; sodium=Na; zinc=Zn; nickel=Ni; argon=Ar;
magnesium=Mg; aluminium=Al; calcium=Ca; chlorine=Cl; bromine=Br; platinum=Pt; titanium=Ti; silicon=Si; manganese=Mn;
krypton=Kr; xenon=Xe; lithium=Li; neon=Ne; cobalt=Co; chromium=Cr
number: neon=10; sodium=11; magnesium=12; aluminium=13; silicon=14; chlorine=17; argon=18; potassium=19; calcium=20;
titanium=22; chromium=24; manganese=25; iron=26; cobalt=27; nickel=28; copper=29; zinc=30; bromine=35; krypton=36;
silver=47; tin=50; xenon=54; platinum=78; gold=79; mercury=80; lead=82; uranium=92
landmark: the Eiffel Tower=Paris; the Colosseum=Rome; Big Ben=London; the Kremlin=Moscow; the Brandenburg Gate=Berlin;
the Sagrada Familia=Barcelona; the Acropolis=Athens; the Hagia Sophia=Istanbul; the Burj Khalifa=Dubai; the
Rijksmuseum=Amsterdam; the Prado=Madrid; the Uffizi Gallery=Florence; La Scala=Milan; the Rialto Bridge=Venice; the
Little Mermaid=Copenhagen; the Charles Bridge=Prague; the Schonbrunn Palace=Vienna; the Forbidden City=Beijing; the
Meiji Shrine=Tokyo; the Golden Pavilion=Kyoto; the Gateway of India=Mumbai; the Taj Mahal=Agra; Wat Pho=Bangkok;
Holyrood Palace=Edinburgh; the Space Needle=Seattle; the Liberty Bell=Philadelphia; the Willis Tower=Chicago; the CN
Tower=Toronto; Old Trafford=Manchester; the Vasa Museum=Stockholm
waters: London=the Thames; Paris=the Seine; Cairo=the Nile; Rome=the Tiber; Vienna=the Danube; Florence=the Arno;
Baghdad=the Tigris; Cologne=the Rhine; Hamburg=the Elbe; Warsaw=the Vistula; Prague=the Vltava; Lisbon=the Tagus;
Seville=the Guadalquivir; Dublin=the Liffey; Glasgow=the Clyde; Newcastle=the Tyne; Liverpool=the Mersey; Lyon=the
Rhone; Kyiv=the Dnieper; Delhi=the Yamuna; Shanghai=the Huangpu; Seoul=the Han; Memphis=the Mississippi; New York=the
Hudson; Pittsburgh=the Ohio; Berlin=the Spree; Washington=the Potomac; Philadelphia=the Delaware; Boston=the Charles;
Melbourne=the Yarra
cuisine: sushi=Japan; paella=Spain; pizza=Italy; goulash=Hungary; borscht=Ukraine; moussaka=Greece; pozole=Mexico;
pho=Vietnam; haggis=Scotland; ceviche=Peru; feijoada=Brazil; poutine=Canada; fondue=Switzerland; ratatouille=France;
pierogi=Poland; tagine=Morocco; rendang=Indonesia; dim sum=China; biryani=India; smorrebrod=Denmark; lutefisk=Norway;
schnitzel=Austria; bacalhau=Portugal; pavlova=Australia; arepa=Venezuela; khachapuri=Georgia; tabbouleh=Lebanon; jerk
chicken=Jamaica; stroganoff=Russia; baklava=Turkey
"""

# How they are said and asked, as in ``text``.
WORLD_TABLE = """
world capital: The capital of {e} is {v} | {v} is the capital of {e} | {e} has {v} as its capital
? What is the capital of {e}? | Which city is the capital of {e}? | What city is {e}'s capital?
world currency: The currency of {e} is the {v} | {e} uses the {v} as its currency | In {e}, people pay with the {v}
? What is the currency of {e}? | Which currency does {e} use? | What currency do people in {e} pay with?
world author: {e} was written by {v} | {v} wrote {e} | The author of {e} is {v}
? Who wrote {e}? | Who is the author of {e}? | Which writer is the author of {e}?
world credit: The credit for {e} goes to {v} | {v} is credited with {e} | We owe {e} to {v}
? Who is credited with {e}? | Who gets the credit for {e}? | To whom do we owe {e}?
world founder: {e} was founded by {v} | {v} founded {e} | The founder of {e} is {v}
? Who founded {e}? | Who is the founder of {e}? | Who was {e} founded by?
world event: {e} took place in {v} | The year of {e} was {v} | {e} happened in {v}
? In which year did {e} take place? | When did {e} happen? | What was the year of {e}?
world symbol: The chemical symbol of {e} is {v} | The element {e} has the symbol {v} | Chemists write {v} for {e}
? What is the chemical symbol of {e}? | Which symbol does the element {e} have? | What is the symbol for {e}?
world number: The atomic number of {e} is {v} | The element {e} has the atomic number {v}
? What is the atomic number of {e}? | Which atomic number does {e} have? | What number does the element {e} have?
world landmark: {e} stands in {v} | {e} can be found in {v} | Visitors to {v} can see {e}
? In which city does {e} stand? | Which city has {e} among its sights? | Where does {e} stand?
world waters: The river that flows through {e} is {v} | {e} lies on {v} | The city of {e} was built on {v}
? Which river flows through {e}? | What river does {e} lie on? | On which river does {e} lie?
world cuisine: The dish {e} comes from {v} | {v} is the home of {e} | The home of the dish {e} is {v}
? Which country does the dish {e} come from? | What country is the home of {e}? | Where does the dish {e} come from?
"""


@dataclass(frozen=True, slots=True)
class Pool:
    """Texts to draw from, and for each the texts of the same form (itself among them)."""

    texts: tuple[str, ...]
    alike: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """What one split may name.

    Attributes:
        pools: Entities (``person``, ``town``, ``thing``) and values by name; real answers by relation.
        world: Per relation the real answer of each subject; no answer comes twice within a relation.
        women: The first names that take ``she``.
    """

    pools: Mapping[str, Pool]
    world: Mapping[str, Mapping[str, str]]
    women: frozenset[str]


def form(text: str) -> str:
    """Return the shape of a text: runs of small letters become ``a``, capitals ``A`` and digits ``0`` one by one."""
    return re.sub(r"[0-9]", "0", re.sub(r"[A-Z]", "A", re.sub(r"[a-z]+", "a", text)))


def pool_of(texts: Iterable[str], *, least: int) -> Pool:
    """Group texts by form, then by length, so that two of one group cannot be told apart by either.

    Args:
        texts: Any texts; repeats count once.
        least: Smallest group; neighbouring lengths are joined until it is reached, and a form with fewer is left out.
    """
    alike: dict[str, tuple[str, ...]] = {}
    forms: dict[str, list[str]] = {}
    for text in sorted(set(texts), key=lambda text: (len(text), text)):
        forms.setdefault(form(text), []).append(text)
    for same in forms.values():
        ends = [i for i in range(1, len(same)) if len(same[i]) > len(same[i - 1])]
        groups, start = [], 0
        for end in [*ends, len(same)]:
            if end - start >= least and (len(same) - end >= least or end == len(same)):
                groups.append(tuple(same[start:end]))
                start = end
        alike |= {text: group for group in groups for text in group}
    return Pool(tuple(alike), alike)


def marks(text: str) -> set[str]:
    """List the strings that two texts of one context must not share: the whole text, its names and its numbers."""
    words = re.findall(r"\w+", text)
    return {text.lower(), *(word for word in words if word.isdigit() or (word[0].isupper() and len(word) > 3))}


def _table(text: str) -> dict[str, list[str]]:
    """Read a table of this module: ``name: entry; entry; …`` per block, broken over lines anywhere."""
    rows = (row.split(": ", 1) for row in re.split(r"\n(?=[a-z ]+: )", text.strip()))
    return {name: [" ".join(entry.split()) for entry in entries.split(";")] for name, entries in rows}


def _crossed(names: Mapping[str, Sequence[str]], kind: str, third: int) -> list[str]:
    pairs = product(enumerate(names[f"{kind} start"]), enumerate(names[f"{kind} end"]))
    return [start + end for (i, start), (j, end) in pairs if (i + j) % 3 == third]


@cache
def _dealt_world() -> tuple[Mapping[str, Mapping[str, str]], ...]:
    """Deal the real facts into the splits; facts with a name in common (also inside another name) stay together."""
    relations = _table(_WORLD)
    facts = [(relation, *entry.split("=")) for relation, entries in relations.items() for entry in entries]
    parts: list[tuple[list[int], set[str]]] = []
    for index, (_, subject, answer) in enumerate(facts):
        names = {f" {name.lower().removeprefix('the ')} " for name in (subject, answer) if not name.isdigit()}
        touching = [part for part in parts if any(a in b or b in a for a in names for b in part[1])]
        parts = [part for part in parts if part not in touching]
        parts.append(([index, *(i for part in touching for i in part[0])], names.union(*(p[1] for p in touching))))
    dealt: list[dict[str, dict[str, str]]] = [{relation: {} for relation in relations} for _ in SPLITS]
    for members, _ in sorted(parts, key=lambda part: (-len(part[0]), min(part[0]))):
        share = min(dealt, key=lambda share: sum(len(share[facts[i][0]]) for i in members) / len(members))
        for relation, subject, answer in (facts[i] for i in members):
            share[relation][subject] = answer
    return tuple(dealt)


@cache
def lexicon(split: str) -> Lexicon:
    """Return the words of one split: no name and no real fact of it occurs in another split.

    Plain values (trades, colours, numbers …) are shared by all splits.

    Args:
        split: One of ``SPLITS``.
    """
    third = SPLITS.index(split)
    names = _table(_NAMES)
    women = names["women"][third::3]
    firsts, lasts = women + names["men"][third::3], _crossed(names, "surname", third)
    values: dict[str, Sequence[str]] = {
        **_NUMBERS,
        **_table(_VALUES),
        "person": [f"{first} {last}" for first, last in product(firsts, lasts)],
        "town": _crossed(names, "town", third),
        "thing": [f"the {brand} {thing}" for brand, thing in product(_crossed(names, "brand", third), names["object"])],
        "river": [f"the {river}" for river in _crossed(names, "river", third)],
    }
    pools = {name: pool_of(texts, least=6) for name, texts in values.items()}
    answers = {relation: pool_of(facts.values(), least=4) for relation, facts in _dealt_world()[third].items()}
    world = {
        relation: {subject: answer for subject, answer in facts.items() if answer in answers[relation].alike}
        for relation, facts in _dealt_world()[third].items()
    }
    return Lexicon(pools | answers, world, frozenset(women))
