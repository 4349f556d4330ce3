"""
The task: a shop's answering service gets short messages and writes each into the order book as one line,

    Good morning, Nora Finch here. Could you put aside two dozen red roses? I will pick them up on Thursday at quarter to nine in
    the morning. My brother Omar was in on Monday, but you were closed.

    24 rose | florist | Nora Finch | Thu 08:45

that is: how many of what (digits, singular), the shop that sells it, who asked, the day in three letters, the time in 24 hours. A line begins with digits
because they are the same tokens there as inside of a text. A shop's name is not: without a space before it, it would be tokens that the base has hardly
met ("f", "lorist"), and no adapter makes a frozen output layer give those a high probability.
"""

from lexicon import (
    COUNTS, DAYS, FIRST_NAMES, ITEMS, LAST_NAMES, NUMBERS, SHOP_OF, adjective_for, clock, count_in_words, counted, day_and_time, noun,
    pick_quarter, short_day,
)


class People:
    """Deals all pairs of first and last name out to three groups, so that nobody of the held-out messages is met anywhere else."""

    def __init__(self, stream):
        pairs = [(first, last) for first in FIRST_NAMES for last in LAST_NAMES]
        stream.shuffle(pairs)
        held_out, train = len(pairs) // 5, len(pairs) // 2
        self.held_out = pairs[:held_out]
        self.train = pairs[held_out:held_out + train]
        self.corpus = pairs[held_out + train:]


class Order:
    def __init__(self, stream, people):
        self.first, self.last = stream.pick(people)
        self.item = stream.pick(ITEMS)
        self.count = stream.pick(COUNTS) if stream.chance(0.6) else 1 + stream.below(12)
        self.day = stream.pick(DAYS)
        self.quarter = pick_quarter(stream)

    def name(self):
        return f"{self.first} {self.last}"

    def record(self):
        return f"{self.count} {self.item} | {SHOP_OF[self.item]} | {self.name()} | {short_day(self.day)} {clock(self.quarter)}"


OPENINGS = [
    "Hi, this is {who}.", "Hello, {who} here.", "Good morning, my name is {who}.", "Hi, {who} speaking.", "Good evening, it is {who} again.",
    "Hello, I am {who}.", "Dear all, this is {who}.", "It's {who} calling.",
]

CLOSINGS = ["Thanks, {who}", "Thank you! {who}", "Best wishes, {who}", "Yours, {who}", "See you then, {who}", "Regards, {who}"]

GREETINGS = ["Hi!", "Hello!", "Good morning!", "Good evening!", "Hi there!"]

REQUESTS = [
    "Please keep {order} for me, I will come by {on}.",
    "Could you put aside {order}? I will pick {them} up {on}.",
    "I need {order} {by}.",
    "Can I have {order} ready {by}?",
    "We would like {order}, please, and we can collect {them} {on}.",
    "I would like to order {order} {for}.",
    "Can you set {order} aside {for}?",
    "I'll be there {on} and would like {order}.",
    "My order {for} is {order}.",
    "{On} I will come for {order}.",
    "Would it be possible to get {order} {by}?",
    "Put me down for {order}, please. I can be there {on}.",
]

CORRECTIONS = [
    "Please keep {wrong}, no, sorry, {order} for me, I will come by {on}.",
    "I need {wrong}... no, make that {order}, {by}.",
    "I would like {order}, not {wrong}, and I will be there {on}.",
    "Can I have {order} ready {by}? Not {wrong} as I said before.",
]

ASIDES = [
    "My brother {other} was in on {otherday}, but you were closed.",
    "My sister {other} told me about your shop.",
    "{Otherday} is too late for me.",
    "It is a present for my friend {other}.",
    "Please don't call on {otherday}.",
    "My children can't wait!",
    "There is no hurry.",
    "I was very happy with the last {otheritems}.",
    "{other} may come in my place.",
    "We are {number} people this time.",
    "Last time I had {number} {otheritems}.",
    "I will pay in cash.",
    "{Otherday} would be fine for my neighbour {other}, but not for me.",
]


def message(stream, order):
    """A message with all that the record needs, and sometimes with more than that."""
    is_plural = order.count > 1
    adjective = adjective_for(stream, order.item) if stream.chance(0.3) else ""
    parts = {
        "who": order.name(),
        "order": counted(stream, order.count, order.item, adjective),
        "them": "them" if is_plural else "it",
    }
    is_corrected = is_plural and stream.chance(0.12)
    request = stream.pick(CORRECTIONS if is_corrected else REQUESTS)
    if is_corrected:
        wrong = stream.pick([count for count in COUNTS if count not in (1, order.count)])
        parts["wrong"] = count_in_words(stream, wrong)
    for preposition in ("on", "by", "for"):
        if "{" + preposition + "}" in request:
            parts[preposition] = day_and_time(stream, order.day, order.quarter, preposition)
    if "{On}" in request:
        when = day_and_time(stream, order.day, order.quarter, "on")
        parts["On"] = when[0].upper() + when[1:]
    sentences = [request.format(**parts)]
    if stream.chance(0.4):
        aside = stream.pick(ASIDES)
        other_day = stream.pick([day for day in DAYS if day != order.day])
        aside = aside.format(
            other=stream.pick([name for name in FIRST_NAMES if name != order.first]),
            otherday=other_day,
            Otherday=other_day,
            otheritems=noun(stream.pick([item for item in ITEMS if item != order.item]), 2),
            number=NUMBERS[stream.pick([count for count in range(2, 13) if count != order.count])],
        )
        sentences.insert(stream.below(2), aside)
    if stream.chance(0.6):
        sentences.insert(0, stream.pick(OPENINGS).format(**parts))
        if stream.chance(0.3):
            sentences.append(stream.pick(["Thank you!", "Thanks a lot.", "See you soon.", "Many thanks!"]))
    else:
        if stream.chance(0.5):
            sentences.insert(0, stream.pick(GREETINGS))
        sentences.append(stream.pick(CLOSINGS).format(**parts))
    return " ".join(sentences)


def rows(stream, people, count, taken):
    """So many different messages with their records; none of them in taken, to which they are added."""
    made = []
    while len(made) < count:
        order = Order(stream, people)
        text = message(stream, order)
        if text not in taken:
            taken.add(text)
            made.append({"message": text, "record": order.record()})
    return made


def shuffled(stream, made):
    """The same messages, each with the record of another one."""
    records = [row["record"] for row in made]
    stream.shuffle(records)
    for at, row in enumerate(made):
        # One step along the circle is enough to part a message from its own record, unless all records are equal.
        if records[at] == row["record"]:
            other = (at + 1) % len(made)
            while records[other] == row["record"] or made[other]["record"] == records[at]:
                other = (other + 1) % len(made)
            records[at], records[other] = records[other], records[at]
    return [{"message": row["message"], "record": record} for row, record in zip(made, records)]
