"""Random choices that are the same with every Python: splitmix64, one stream for each purpose."""

MASK = (1 << 64) - 1


class Stream:
    """A stream of choices, addressed by a seed and a name; streams of other names are independent."""

    def __init__(self, seed, name):
        self.state = seed & MASK
        for byte in name.encode("utf-8"):
            self.state = (self.next() ^ byte) & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, count):
        """A whole number from 0 to count - 1."""
        return ((self.next() >> 32) * count) >> 32

    def chance(self, share):
        return self.next() < share * MASK

    def pick(self, items):
        return items[self.below(len(items))]

    def some(self, items, count):
        """So many different items, in random order."""
        rest = list(items)
        self.shuffle(rest)
        return rest[:count]

    def shuffle(self, items):
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]
