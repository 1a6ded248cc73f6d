"""Numbers in English words."""

UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = ["<end>", "<start>", *UNITS, *TEENS, *TENS, "hundred", "thousand", "and"]
"""The vocabulary, in the order of the model's words; END and START of the shape come first."""
MOST = 8
"""Words of a number below 10,000 at most, with the end."""


def spoken(number: int) -> list[str]:
    """The words of a number from 1 to 9,999, as in "three hundred and seven"."""
    if not 1 <= number <= 9999:
        raise ValueError(f"number is {number}; accepted are 1 to 9,999")
    if number >= 1000:
        return [UNITS[number // 1000 - 1], "thousand", *_rest(number % 1000)]
    if number >= 100:
        return [UNITS[number // 100 - 1], "hundred", *_rest(number % 100)]
    if number >= 20:
        return [TENS[number // 10 - 2], *(UNITS[number % 10 - 1 : number % 10] if number % 10 else [])]
    return [TEENS[number - 10] if number >= 10 else UNITS[number - 1]]


def _rest(number: int) -> list[str]:
    if number == 0:
        return []
    return spoken(number) if number >= 100 else ["and", *spoken(number)]


def ids(number: int) -> list[int]:
    """The words of a number as indices, filled with the end to `MOST`."""
    found = [WORDS.index(word) for word in spoken(number)]
    return found + [0] * (MOST - len(found))
