"""The words of a small town with eight shops, and the ways in which its people say numbers, days and times."""

FIRST_NAMES = """Nora Omar Ida Felix Greta Hugo Maya Leo Clara Jonas Elif Tom Rosa Anton Lena Viktor Amira Ben Sofia Karl
Dora Samir Helen Otto Ruth Milan Eva Pablo Judith Theo Yara Simon Alma Ravi Tessa Oscar Nina Emil Zoe Marco Lydia Ivan
Paula Kofi Agnes Dario Stella Bruno""".split()

LAST_NAMES = """Finch Okafor Berger Hall Novak Silva Marsh Keller Aydin Costa Lund Walsh Petrov Quinn Sato Moreau Fisher
Hansen Rossi Adler Doyle Vargas Bloom Iyer Nolan Weber Pratt Haas Ortega Lindt Frost Baker Mensah Carver Dahl Torres
Whyte Urban Klein Sharp""".split()

TOWNS = "Marlow Ashby Kirkton Selby Norwood Elmstead Tarvin Holm Brenton Wexley Linford Oakham".split()

# Shop: who works there, what it sells. An item is its singular; plurals that are not regular follow in PLURALS.
SHOPS = {
    "bakery": ("baker", "roll loaf bagel muffin pretzel croissant pie bun".split()),
    "grocer": ("grocer", "apple pear plum carrot onion cabbage tomato peach".split()),
    "florist": ("florist", "rose tulip lily daisy orchid fern wreath sunflower".split()),
    "butcher": ("butcher", "sausage steak chop ham chicken duck turkey burger".split()),
    "stationer": ("stationer", "pencil notebook envelope stamp ruler diary marker folder".split()),
    "ironmonger": ("ironmonger", "hammer ladder brush torch bucket spade padlock shelf".split()),
    "toyshop": ("toy seller", "puzzle kite doll drum marble robot teddy yoyo".split()),
    "bookshop": ("bookseller", "novel map atlas cookbook comic poster postcard calendar".split()),
}

PLURALS = {
    "loaf": "loaves", "tomato": "tomatoes", "peach": "peaches", "lily": "lilies", "daisy": "daisies", "diary": "diaries",
    "brush": "brushes", "torch": "torches", "shelf": "shelves", "teddy": "teddies", "atlas": "atlases",
}

FOOD_SHOPS = ["bakery", "grocer", "butcher"]

FOOD_ADJECTIVES = "small large nice good fresh big cheap".split()

OTHER_ADJECTIVES = "small large nice good blue red green white plain".split()

SHOP_OF = {item: shop for shop, (_, items) in SHOPS.items() for item in items}

ITEMS = list(SHOP_OF)

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

HOURS = "twelve one two three four five six seven eight nine ten eleven".split()

NUMBERS = {
    1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten",
    11: "eleven", 12: "twelve", 15: "fifteen", 18: "eighteen", 20: "twenty", 24: "twenty-four", 30: "thirty", 36: "thirty-six",
    40: "forty", 50: "fifty", 60: "sixty",
}

COUNTS = list(NUMBERS)

NICKNAMES = {2: ["a couple of", "a pair of"], 6: ["half a dozen"], 12: ["a dozen"], 24: ["two dozen"], 36: ["three dozen"], 60: ["five dozen"]}

# Shops take orders from 07:00 to 20:45, every quarter of an hour.
OPENING, CLOSING = 7 * 4, 20 * 4 + 3


def plural(item):
    return PLURALS.get(item, item + "s")


def article(word):
    return "an" if word[0] in "aeiou" else "a"


def noun(item, count):
    return item if count == 1 else plural(item)


def short_day(day):
    return day[:3]


def adjective_for(stream, item):
    return stream.pick(FOOD_ADJECTIVES if SHOP_OF[item] in FOOD_SHOPS else OTHER_ADJECTIVES)


def count_in_words(stream, count):
    """What comes before the noun: a word, digits, or a name such as "half a dozen"."""
    if count in NICKNAMES and stream.chance(0.45):
        return stream.pick(NICKNAMES[count])
    return str(count) if stream.chance(0.2) else NUMBERS[count]


def counted(stream, count, item, adjective=""):
    """ "three large rolls", "a rose", "half a dozen eggs" """
    middle = adjective + " " if adjective else ""
    if count == 1:
        number = article(middle or item) if stream.chance(0.6) else stream.pick(["one", "1", "just one"])
    else:
        number = count_in_words(stream, count)
    return f"{number} {middle}{noun(item, count)}"


def pick_quarter(stream):
    return OPENING + stream.below(CLOSING - OPENING + 1)


def clock(quarter):
    return f"{quarter // 4:02d}:{quarter % 4 * 15:02d}"


def part_of_day(quarter):
    return "morning" if quarter < 12 * 4 else "afternoon" if quarter < 18 * 4 else "evening"


def is_ambiguous(quarter):
    """Whether the shops are open at this time of the clock's face both before and after noon."""
    return OPENING <= quarter + 48 <= CLOSING or OPENING <= quarter - 48 <= CLOSING


def face(quarter):
    """The time as read from a clock's face: "quarter to nine"."""
    hour, minutes = quarter // 4, quarter % 4
    this, following = HOURS[hour % 12], HOURS[(hour + 1) % 12]
    return [this, f"quarter past {this}", f"half past {this}", f"quarter to {following}"][minutes]


def time_in_words(stream, quarter, with_part=True):
    """One of the ways to say a time. Without the part of the day it is for "Thursday morning at ..." """
    hour, minutes = quarter // 4, quarter % 4
    kind = stream.below(10)
    if kind == 0:
        return clock(quarter)
    if with_part and kind <= 2:
        twelve = (hour + 11) % 12 + 1
        return f"{twelve}{'' if minutes == 0 else f':{minutes * 15}'} {'am' if hour < 12 else 'pm'}"
    if quarter == 48 and with_part:
        return "noon"
    words = face(quarter)
    if minutes == 0 and (hour == 12 or stream.chance(0.5)):
        words += " o'clock"
    if with_part and hour != 12 and (is_ambiguous(quarter) or stream.chance(0.6)):
        words += f" in the {part_of_day(quarter)}"
    return words


def day_and_time(stream, day, quarter, preposition):
    """ "on Thursday at half past three", "by Thursday morning at nine", "for 9:30 am on Thursday" """
    kind = stream.below(5)
    if kind == 0 and quarter // 4 != 12:
        return f"{preposition} {day} {part_of_day(quarter)} at {time_in_words(stream, quarter, with_part=False)}"
    if kind == 1:
        return f"{'at' if preposition == 'on' else preposition} {time_in_words(stream, quarter)} on {day}"
    return f"{preposition} {day} at {time_in_words(stream, quarter)}"
