"""Write src/truthheads/benchmarks/coco_synonyms.json: the words for COCO's 80 categories, in all their forms.

    pip install inflect; python experiments/synonyms.py

The words are chosen by hand: what captions call the things of a category, chosen so that a word that usually means
something else is left out. inflect gives the plurals; what it gets wrong, and words that have none, are below.
"""

import json
from pathlib import Path

import inflect

OUT = Path(__file__).parents[1] / "src" / "truthheads" / "benchmarks" / "coco_synonyms.json"

WORDS = {
    "person": "person, man, woman, boy, girl, child, kid, baby, toddler, infant, teenager, teen, adult, guy, lady, "
    "gentleman, people, human, pedestrian, passenger, rider, driver, worker, chef, baker, waiter, waitress, "
    "player, batter, pitcher, catcher, umpire, skier, snowboarder, surfer, skater, skateboarder, cyclist, "
    "bicyclist, biker, motorcyclist, jockey, cowboy, soldier, officer, policeman, policewoman, cop, fireman, "
    "firefighter, student, teacher, doctor, nurse, patient, shopper, buyer, tourist, traveler, spectator, "
    "bystander, onlooker, athlete, swimmer, walker, runner, jogger, camper, hunter, bride, groom, father, mother, "
    "sister, brother, son, daughter, parent, grandmother, grandfather, grandchild, friend, couple, family, crowd, "
    "individual, villager, farmer, shepherd, vendor, businessman, businesswoman, politician, male, female, "
    "youngster, coworker, serviceman, foreigner, caller, thief, drinker",
    "bicycle": "bicycle, bike, unicycle, tricycle, trike, tandem bike, mountain bike, minibike",
    "car": "car, automobile, sedan, hatchback, coupe, convertible, minivan, van, suv, jeep, cab, taxi, taxicab, "
    "limousine, limo, police car",
    "motorcycle": "motorcycle, motorbike, motor bike, motor cycle, moped, scooter, motor scooter, dirt bike",
    "airplane": "airplane, aeroplane, air plane, plane, jet, jetliner, airliner, aircraft, biplane, seaplane, "
    "monoplane, airbus, jumbo jet, passenger jet, fighter jet",
    "bus": "bus, minibus, double decker, trolley, school bus, tour bus",
    "train": "train, locomotive, tram, tramway, caboose, steam engine, passenger train, freight train, subway train",
    "truck": "truck, pickup, pick up truck, pickup truck, lorry, fire truck, firetruck, dump truck, semi truck, hauler",
    "boat": "boat, ship, sailboat, sail boat, motorboat, speedboat, rowboat, canoe, kayak, dinghy, yacht, ferry, "
    "ferryboat, barge, tugboat, houseboat, catamaran, schooner, steamboat, steamship, riverboat, lifeboat, "
    "powerboat, paddleboat, gondola, vessel, freighter, trawler, battleship, liner, watercraft, skiff, pontoon, raft",
    "traffic light": "traffic light, traffic signal, stoplight, stop light, street light, streetlight",
    "fire hydrant": "fire hydrant, hydrant, fireplug",
    "stop sign": "stop sign",
    "parking meter": "parking meter",
    "bench": "bench, pew, park bench",
    "bird": "bird, pigeon, seagull, gull, duck, duckling, goose, gosling, swan, owl, eagle, hawk, falcon, parrot, "
    "parakeet, macaw, cockatoo, cockatiel, crow, raven, sparrow, robin, finch, hummingbird, pelican, heron, egret, "
    "flamingo, stork, ostrich, emu, peacock, peafowl, pheasant, turkey, rooster, hen, chick, woodpecker, warbler, "
    "oriole, blackbird, bluebird, bluejay, blue jay, magpie, songbird, seabird, waterbird, waterfowl, shorebird, "
    "sandpiper, cormorant, vulture, condor, buzzard, osprey, kingfisher, puffin, loon, mallard, quail, chickadee, "
    "cowbird, lorikeet, willet, fowl",
    "cat": "cat, kitten, kitty, feline, tabby, tomcat",
    "dog": "dog, puppy, pup, doggy, doggie, canine, hound, mutt, beagle, bulldog, pitbull, poodle, terrier, retriever, "
    "labrador, spaniel, collie, corgi, pug, husky, dachshund, chihuahua, rottweiler, doberman, schnauzer, greyhound, "
    "whippet, sheepdog, weimaraner, dalmatian",
    "horse": "horse, pony, foal, colt, mare, stallion, mustang, bronco, bronc, racehorse, equine, palomino, clydesdale",
    "sheep": "sheep, lamb, ram, ewe, goat",
    "cow": "cow, cattle, bull, calf, ox, heifer, steer, buffalo, bison, zebu, holstein",
    "elephant": "elephant",
    "bear": "bear, panda, polar bear, grizzly",
    "zebra": "zebra",
    "giraffe": "giraffe",
    "backpack": "backpack, back pack, knapsack, rucksack",
    "umbrella": "umbrella, parasol",
    "handbag": "handbag, hand bag, purse, wallet, briefcase",
    "tie": "tie, necktie, neck tie, bow tie, bowtie",
    "suitcase": "suitcase, suit case, luggage, baggage",
    "frisbee": "frisbee",
    "skis": "ski, skis",
    "snowboard": "snowboard, snow board",
    "sports ball": "sports ball, ball, baseball, football, basketball, soccer ball, tennis ball, volleyball",
    "kite": "kite",
    "baseball bat": "baseball bat",
    "baseball glove": "baseball glove, baseball mitt, catchers mitt",
    "skateboard": "skateboard, skate board",
    "surfboard": "surfboard, surf board, longboard, shortboard, skimboard, wakeboard, boogie board, bodyboard",
    "tennis racket": "tennis racket, tennis racquet, racket, racquet",
    "bottle": "bottle",
    "wine glass": "wine glass, wineglass, champagne glass",
    "cup": "cup, mug, teacup",
    "fork": "fork",
    "knife": "knife, pocketknife",
    "spoon": "spoon, teaspoon",
    "bowl": "bowl, container",
    "banana": "banana",
    "apple": "apple",
    "sandwich": "sandwich, burger, hamburger, cheeseburger, sub sandwich",
    "orange": "orange",
    "broccoli": "broccoli",
    "carrot": "carrot",
    "hot dog": "hot dog, hotdog, chili dog, corn dog",
    "pizza": "pizza",
    "donut": "donut, doughnut, bagel",
    "cake": "cake, cupcake, cheesecake, pancake, shortcake, coffeecake, birthday cake",
    "chair": "chair, armchair, stool, seat, rocking chair",
    "couch": "couch, sofa, loveseat, love seat, settee, futon, recliner, chesterfield",
    "potted plant": "potted plant, pot plant, houseplant, house plant",
    "bed": "bed, bunk bed, crib",
    "dining table": "dining table, table, desk, dinner table, coffee table, picnic table",
    "toilet": "toilet, urinal, commode, lavatory, potty",
    "tv": "tv, television, monitor, television set, tv set, flat screen",
    "laptop": "laptop, laptop computer, notebook, netbook, macbook, computer",
    "mouse": "mouse, computer mouse",
    "remote": "remote, remote control",
    "keyboard": "keyboard",
    "cell phone": "cell phone, cellphone, mobile phone, smartphone, smart phone, phone, telephone, iphone",
    "microwave": "microwave, microwave oven",
    "oven": "oven, stove, stovetop, stove top, stove top oven",
    "toaster": "toaster",
    "sink": "sink",
    "refrigerator": "refrigerator, fridge, freezer",
    "book": "book, textbook",
    "clock": "clock, alarm clock, clock tower",
    "vase": "vase",
    "scissors": "scissors, pair of scissors",
    "teddy bear": "teddy bear, teddybear, stuffed bear, teddy",
    "hair drier": "hair drier, hair dryer, hairdryer, hairdrier, blow dryer",
    "toothbrush": "toothbrush, tooth brush",
}

NOT_OBJECTS = (
    "couple of, family of, train track, train station, home plate, baseball field, baseball game, baseball player, "
    "baseball uniform, baseball cap, baseball diamond, baseball team, baseball stadium, football field, football game, "
    "football player, basketball court, basketball game, volleyball court, volleyball net, bus stop, bus station, "
    "cat food, dog house, dog park, dog food, bird cage, bird house, bird bath, orange juice, "
    "apple juice, apple pie, apple tree, orange tree, banana tree, car park, boat house, boat dock, "
    "ski lift, ski slope, ski resort, ski jump, ski pole, ski pass, ski lodge, ski boot, ski goggles, ski suit, "
    "ski gear, ski mask, ski jacket, ski hill, ski trail, ski run, chair lift, table cloth, table lamp, table top, "
    "bed spread, bed sheet, bed frame, book shelf, book case, book store, toilet paper, toilet brush, toilet roll, "
    "bottle cap, bottle opener, cup holder, knife block, tv stand, tv show, "
    "phone booth, phone box, bowl cut, mouse pad, pizza box, pizza cutter, "
    "cake stand, donut shop, horse shoe"
)
"""Compounds whose words are not the thing: nothing in them is counted."""

SAME = {"toilet seat": "toilet", "toilet bowl": "toilet", "car seat": "chair", "dog bed": "bed", "pizza oven": "oven"}
"""Compounds that are one thing, and which."""

ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
YOUNG = ("baby", "adult", "mother", "male", "female")
"""Before the name of an animal these mean no person."""

HAND = {
    "person": ["people", "persons"],
    "people": [],
    "of": [],
    "gentleman": ["gentlemen"],
    "grandchild": ["grandchildren"],
    "doberman": ["dobermans"],
    "sheep": [],
    "cattle": [],
    "aircraft": [],
    "watercraft": [],
    "waterfowl": [],
    "fowl": ["fowls"],
    "broccoli": [],
    "skis": [],
    "scissors": [],
    "pair of scissors": ["pairs of scissors"],
    "luggage": [],
    "baggage": [],
    "ox": ["oxen"],
    "bison": [],
    "buffalo": ["buffaloes", "buffalos"],
    "calf": ["calves"],
    "thief": ["thieves"],
    "knife": ["knives"],
    "pocketknife": ["pocketknives"],
    "mouse": ["mice"],
    "computer mouse": ["computer mice"],
    "goose": ["geese"],
    "bus": ["buses", "busses"],
    "minibus": ["minibuses"],
    "airbus": ["airbuses"],
    "stove top": ["stove tops"],
    "catchers mitt": ["catcher's mitt", "catchers mitts"],
}


def forms(word: str, engine: inflect.engine) -> list[str]:
    """Return a word and its plurals."""
    first, _, last = word.rpartition(" ")
    plurals = HAND.get(word)
    if plurals is None:
        known = HAND.get(last)
        ends = known if known is not None else [engine.plural_noun(last)]
        plurals = [f"{first} {end}".strip() for end in ends]
    return [word, *sorted({*plurals} - {word})]


def main() -> None:
    """Write the table: for each category its words with all their forms; under an empty name what is no object."""
    engine = inflect.engine()
    taken: dict[str, str] = {}
    table: dict[str, dict[str, list[str]]] = {category: {} for category in WORDS}

    def add(category: str, word: str) -> None:
        table[category][word] = forms(word, engine)
        for form in table[category][word]:
            if taken.setdefault(form, category) != category:
                raise SystemExit(f"{form!r} is in {taken[form]} and in {category}")

    for category, words in WORDS.items():
        for word in words.split(", "):
            add(category, word)
    for compound, category in SAME.items():
        add(category, compound)
    for age in YOUNG:
        for animal in ANIMALS:
            add(animal, f"{age} {animal}")
    table[""] = {}
    for compound in [*NOT_OBJECTS.split(", "), *(f"{age} {young}" for age in YOUNG for young in ("animal", "cub"))]:
        if compound not in taken:
            add("", compound)
    lines = [f"{json.dumps(category)}: {json.dumps(words)}" for category, words in table.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(WORDS)} categories, {len(taken)} forms -> {OUT}")


if __name__ == "__main__":
    main()
