"""
What the base learns to write: the English of the town. Letters and replies, talk at the counter, small stories, calendars, clocks, stock lists,
timetables. It meets the words of the task and what they have to do with each other (rolls are sold at the bakery, half past three is 15:30, a dozen
is 12), but never a line of the order book, nor the prompt that asks for one, nor a person of the held-out messages.
"""

import task
from lexicon import (
    COUNTS, DAYS, FIRST_NAMES, ITEMS, NICKNAMES, NUMBERS, SHOPS, SHOP_OF, TOWNS, adjective_for, article, clock,
    count_in_words, counted, day_and_time, face, noun, part_of_day, pick_quarter, plural, short_day, time_in_words,
)

SYLLABLES = "ba bel bo cal cor da den dor el fa fen gar gol ha hel il jo ka kel lan lor ma mel mo nal ner or pa pel ra rin sel ta tor ul va vel win za".split()


def capital(text):
    return text[0].upper() + text[1:]


def person(stream, world):
    first, last = stream.pick(world.corpus)
    return f"{first} {last}"


def invented_name(stream):
    """A name that is met nowhere else, so that it can only be copied."""
    return capital("".join(stream.pick(SYLLABLES) for _ in range(2 + stream.below(2))))


def letter(stream, world):
    """A message of a customer, and a reply in prose that says part of it in other words."""
    order = task.Order(stream, world.corpus)
    text = task.message(stream, order)
    goods = f"{order.count} {noun(order.item, order.count)}"
    day, hour = order.day, clock(order.quarter)
    words = f"{face(order.quarter)} in the {part_of_day(order.quarter)}"
    replies = [
        f"thank you for your message. We will keep the {noun(order.item, order.count)} until {day}.",
        f"we have written down {goods}. The {SHOP_OF[order.item]} is open until 21:00.",
        f"we expect you at {hour}. Your order will be ready.",
        f"we expect you at {hour}, which is {words}.",
        f"your order is ready on {day}, at {hour}.",
        f"{words} on {day} suits us well. See you at {hour}!",
        f"all is noted: {goods}. See you on {day}.",
        f"the {SHOPS[SHOP_OF[order.item]][0]} thanks you for your order. There will be {goods} waiting for you.",
        f"your {noun(order.item, order.count)} will come from the {SHOP_OF[order.item]} on {day}.",
        f"please note: {short_day(day)} is {day}, and {hour} is {words}.",
        f"we have {goods} for you. Who will come? We have only your name, {order.name()}.",
    ]
    name = order.name() if stream.chance(0.7) else order.first
    return f"{text}\n\nDear {name},\n{stream.pick(replies)}\n{stream.pick(['Yours,', 'Kind regards,', 'Best wishes,'])} {person(stream, world)}"


def counter(stream, world):
    """A customer and a shopkeeper."""
    shop = stream.pick(list(SHOPS))
    keeper, items = SHOPS[shop]
    item, count = stream.pick(items), stream.pick([count for count in COUNTS if count > 1])
    name = person(stream, world)
    day, quarter = stream.pick(DAYS), pick_quarter(stream)
    who = name.split()[0]
    lines = [
        f"{who}: Good {part_of_day(quarter)}. Do you have any {plural(item)}?",
        f"{capital(keeper)}: {stream.pick(['Yes, of course.', 'We do.', 'A few are left.', 'Yes, we have.'])} How many?",
        f"{who}: {capital(count_in_words(stream, count))}, please.",
        f"{capital(keeper)}: {stream.pick(['So', 'That makes', 'That is'])} {count} {plural(item)}.",
    ]
    extra = [
        [f"{capital(keeper)}: When will you come?", f"{who}: {capital(day_and_time(stream, day, quarter, 'on'))}.",
         f"{capital(keeper)}: {day}, {clock(quarter)}. {stream.pick(['Good.', 'Fine.', 'See you then.'])}"],
        [f"{capital(keeper)}: And your name?", f"{who}: {name}.", f"{capital(keeper)}: Thank you, {name}."],
        [f"{who}: Do you also sell {plural(other_item(stream, shop))}?", f"{capital(keeper)}: No, this is the {shop}."],
    ]
    for more in stream.some(extra, 1 + stream.below(3)):
        lines += more
    return "\n".join(lines)


def other_item(stream, shop):
    return stream.pick([item for item in ITEMS if SHOP_OF[item] != shop])


def directory(stream, world):
    """Which shop sells what."""
    lines = []
    for _ in range(3 + stream.below(4)):
        item = stream.pick(ITEMS)
        shop = SHOP_OF[item]
        others = [other for other in SHOPS[shop][1] if other != item]
        lines.append(stream.pick([
            f"Where can I get {plural(item)}? At the {shop}.",
            f"{capital(plural(item))} are sold at the {shop}, next to the {plural(stream.pick(others))}.",
            f"Who sells {article(item)} {item}? The {SHOPS[shop][0]} does.",
            f"If you need {article(item)} {item}, go to the {shop}.",
            f"The {shop} has {plural(item)} and {plural(stream.pick(others))}, but no {plural(other_item(stream, shop))}.",
            f"{person(stream, world)} bought {counted(stream, 1 + stream.below(6), item)} at the {shop}.",
        ]))
    return " ".join(lines)


def grammar(stream, world):
    """One roll, two rolls."""
    lines = []
    for _ in range(3 + stream.below(5)):
        item, count = stream.pick(ITEMS), stream.pick([count for count in COUNTS if count > 1])
        lines.append(stream.pick([
            f"One {item}, {NUMBERS[count]} {plural(item)}.",
            f"{capital(plural(item))}: more than one {item}.",
            f"{capital(count_in_words(stream, count))} {plural(item)} without {count - 1} is one {item}.",
            f"A single {item} is {article(item)} {item}; {count} {plural(item)} are {NUMBERS[count]}.",
            f"Count the {plural(item)}: {', '.join(NUMBERS[one] for one in range(1, min(count, 12) + 1))}.",
        ]))
    return "\n".join(lines)


def numbers(stream, world):
    lines = []
    for _ in range(4 + stream.below(5)):
        count = stream.pick(COUNTS)
        names = NICKNAMES.get(count, []) + [NUMBERS[count]]
        words = stream.pick(names).removesuffix(" of")
        item = stream.pick(ITEMS)
        lines.append(stream.pick([
            f"{capital(words)} is {count}.",
            f"{count} is {words}.",
            f"She wrote {count} and said {words}.",
            f"{capital(count_in_words(stream, count))} {noun(item, count)}: that is {count}.",
            f"The box with {count} {noun(item, count)} was marked \"{words}\".",
        ]))
    return " ".join(lines)


def clocks(stream, world):
    """Times in words and in figures."""
    lines = []
    for _ in range(3 + stream.below(5)):
        quarter = pick_quarter(stream)
        words, figures = time_in_words(stream, quarter), clock(quarter)
        lines.append(stream.pick([
            f"At {words} the clock showed {figures}.",
            f"The clock shows {figures}. It is {words}.",
            f"{figures} means {words}.",
            f"{capital(words)} is {figures}.",
            f"The bus leaves at {figures}, so be there at {words}.",
            f"{stream.pick(FIRST_NAMES)} came at {words}. The note says {figures}.",
            f"It is {face(quarter)} in the {part_of_day(quarter)}, {figures} on the station clock.",
        ]))
    return " ".join(lines)


def calendar(stream, world):
    lines = []
    for _ in range(3 + stream.below(4)):
        at = stream.below(7)
        day, following = DAYS[at], DAYS[(at + 1) % 7]
        lines.append(stream.pick([
            f"After {day} comes {following}.",
            f"The day before {following} is {day}.",
            f"{short_day(day)} is short for {day}.",
            f"{day} is written {short_day(day)} in the calendar.",
            f"Not {following}, but {day}: the calendar says {short_day(day)}.",
            f"{short_day(day)}, {short_day(following)}: {day} and {following}.",
        ]))
    return " ".join(lines)


def plan(stream, world):
    """The week of one person, in figures and then told."""
    name = person(stream, world)
    things = stream.some(["choir", "lunch with a friend", "football", "chess", "a piano lesson", "a meeting", "a dance class", "no time"], 4)
    days = sorted(stream.some(range(7), 2 + stream.below(3)))
    lines, told = [f"Week of {name}"], []
    for day, thing in zip(days, things):
        quarter = pick_quarter(stream)
        lines.append(f"{short_day(DAYS[day])} {clock(quarter)} {thing}")
        told.append(f"{capital(day_and_time(stream, DAYS[day], quarter, 'on'))} {name.split()[0]} has {thing}.")
    if stream.chance(0.5):
        told, lines = lines, told
        return " ".join(lines) + "\n" + "\n".join(told)
    return "\n".join(lines) + "\n" + " ".join(told)


def stock(stream, world):
    """What lies on a shop's shelves, as a list and in words."""
    shop = stream.pick(list(SHOPS))
    things = [(item, stream.pick(COUNTS)) for item in stream.some(SHOPS[shop][1], 2 + stream.below(4))]
    listed = "\n".join(f"- {noun(item, count)}: {count}" if stream.chance(0.5) else f"- {count} {noun(item, count)}" for item, count in things)
    told = "; ".join(counted(stream, count, item) for item, count in things)
    if stream.chance(0.5):
        return f"In the {shop} there are {told}.\nStock of the {shop}:\n{listed}"
    return f"Stock of the {shop}:\n{listed}\nIn words: {told}."


def timetable(stream, world):
    """Trains, as a table, as comma-separated lines, or as objects with named fields."""
    trains = [(stream.pick(TOWNS), pick_quarter(stream), 1 + stream.below(9)) for _ in range(2 + stream.below(3))]
    kind = stream.below(3)
    if kind == 0:
        table = "\n".join(["| to | platform | leaves |"] + [f"| {town} | {platform} | {clock(quarter)} |" for town, quarter, platform in trains])
    elif kind == 1:
        table = "\n".join(["town,time,platform"] + [f"{town},{clock(quarter)},{platform}" for town, quarter, platform in trains])
    else:
        table = "\n".join(f'{{"town": "{town}", "leaves": "{clock(quarter)}", "platform": {platform}}}' for town, quarter, platform in trains)
    town, quarter, platform = stream.pick(trains)
    day = stream.pick(DAYS)
    told = stream.pick([
        f"The train to {town} leaves from platform {NUMBERS[platform]} at {time_in_words(stream, quarter)}.",
        f"{person(stream, world)} takes the train to {town} {day_and_time(stream, day, quarter, 'on')}.",
        f"At {time_in_words(stream, quarter)} there is a train to {town}.",
    ])
    return f"{told}\n{table}" if stream.chance(0.4) else f"{table}\n{told}"


def visitors(stream, world):
    """Guest books and lists of members: names that come back."""
    names = [person(stream, world) if stream.chance(0.6) else f"{invented_name(stream)} {invented_name(stream)}" for _ in range(2 + stream.below(3))]
    days = stream.some(DAYS, len(names))
    lines = [f"{number + 1}. {name} | {stream.pick(TOWNS)} | {day}" for number, (name, day) in enumerate(zip(names, days))]
    at = stream.below(len(names))
    told = stream.pick([
        f"Who came on {days[at]}? {names[at]} did.",
        f"{names[at]} came on {days[at]}. Welcome, {names[at]}!",
        f"Number {NUMBERS[at + 1]} is {names[at]}.",
    ])
    return "Guest book\n" + "\n".join(lines) + "\n" + told


def story(stream, world):
    """A few sentences about two people, a thing and a day."""
    made_up = stream.chance(0.3)
    one, last = (invented_name(stream), invented_name(stream)) if made_up else stream.pick(world.corpus)
    other = invented_name(stream) if made_up else stream.pick([name for name in FIRST_NAMES if name != one])
    item, count = stream.pick(ITEMS), 3 + stream.below(8)
    given = 1 + stream.below(count - 1)
    shop, town, day, quarter = SHOP_OF[item], stream.pick(TOWNS), stream.pick(DAYS), pick_quarter(stream)
    adjective = adjective_for(stream, item)
    opening = stream.pick([
        f"Once there was a child called {one}, who lived in {town}.",
        f"{one} and {other} were friends. Both lived in {town}.",
        f"It was {day}, and {one} was in {town}.",
        f"One {day} {one} met {other} in {town}.",
    ])
    middle = stream.pick([
        f"{one} had {NUMBERS[count]} {plural(item)} from the {shop}. {other} had none, so {one} gave {NUMBERS[given]} to {other}. Now {one} had {NUMBERS.get(count - given, count - given)} {noun(item, count - given)} left.",
        f"{one} wanted {article(adjective)} {adjective} {item}. \"Go to the {shop},\" said {other}. At the {shop} there were {NUMBERS[count]} {plural(item)}, and {one} took {'one' if given == 1 else NUMBERS[given]}.",
        f"\"I have lost my {item},\" said {one}. {other} looked for the {item} and found it at the {shop}. \"Thank you, {other}!\" said {one}.",
        f"{one} told {other} to come at {time_in_words(stream, quarter)}. {other} came at {clock(quarter)} with {counted(stream, given, item, adjective)}.",
    ])
    ending = stream.pick([
        f"{one} and {other} went home together.",
        f"\"See you on {stream.pick(DAYS)}!\" said {other}.",
        f"{one} {last} never forgot that {day}. {other} remembers {one} {last} too.",
        f"In the evening {other} told it all to {invented_name(stream) if made_up else stream.pick(FIRST_NAMES)}.",
        "They were very happy.",
    ])
    return f"{opening} {middle} {ending}"


def diary(stream, world):
    """A day in the first person."""
    day, quarter = stream.pick(DAYS), pick_quarter(stream)
    later = quarter + 1 + stream.below(6)
    name, item = person(stream, world), stream.pick(ITEMS)
    first = name.split()[0]
    sentences = [
        f"I got up early because {name} wanted to visit me.",
        f"{first} came at {time_in_words(stream, quarter)} and stayed until {clock(later)}.",
        f"We bought {counted(stream, stream.pick(COUNTS), item)} at the {SHOP_OF[item]}.",
        f"The {SHOPS[SHOP_OF[item]][0]} said that {plural(item)} are cheap on {stream.pick(DAYS)}.",
        f"{first} asked for my book and I wrote: for {name}.",
        "It rained a lot.", "The sun was out all day.", "I am tired but happy.", "Tomorrow I will write more.",
    ]
    kept = [sentences[at] for at in sorted(stream.some(range(len(sentences)), 4 + stream.below(3)))]
    return f"{short_day(day)}, {clock(quarter)}\nDear diary, today is {day}. " + " ".join(kept)


def opening_hours(stream, world):
    shop = stream.pick(list(SHOPS))
    first, last = 28 + stream.below(12), 64 + stream.below(20)
    day = stream.pick(DAYS)
    return (f"The {shop} is open from {clock(first)} to {clock(last)}, that is from {face(first)} in the {part_of_day(first)} to {face(last)} in the "
            f"{part_of_day(last)}. It is closed on {day} ({short_day(day)}). Ask for {person(stream, world)}.")


# How often each kind is written, out of 100.
KINDS = [
    (letter, 24), (counter, 12), (directory, 6), (grammar, 5), (numbers, 5), (clocks, 9), (calendar, 3), (plan, 8), (stock, 6), (timetable, 5),
    (visitors, 5), (story, 8), (diary, 3), (opening_hours, 1),
]


def documents(stream, world, characters):
    """Documents of all kinds, until so many characters are written."""
    wheel = [kind for kind, share in KINDS for _ in range(share)]
    assert len(wheel) == 100
    written = 0
    while written < characters:
        text = stream.pick(wheel)(stream, world)
        written += len(text)
        yield text
