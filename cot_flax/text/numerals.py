"""Numbers as people and models write them, read exactly.

Two grammars share one syntax. `find_numbers` reads what is clear anywhere in a text: thousands
separators of several locales, decimals with or without a leading zero, exponents, fractions
(`3/4`, `½`), mixed numbers (`2 1/2`), a minus sign or word, other scripts' digits, scales (`2.5
million`, `3万`). `first_number` reads where an answer is expected, and there also takes what
elsewhere could be two numbers or a unit (`1 250`, `12,5`, `5k`), a sum, and number words, English
and Chinese. A percent sign or a unit after a number does not change it; nor does `dozen`, which
questions ask for by the dozen. What stands in LaTeX comes through `latex.plain` first.
"""

import re
import unicodedata
from fractions import Fraction

# A value is read only if its numerator and denominator stay below this. Generated text holds runs
# of thousands of digits and exponents such as 1e999999999: they are no answers, and cost no time.
LIMIT = 10**100
_LONGEST_LITERAL = 200
_LONGEST_DECIMAL = 20
_LONGEST_SPELT = 40  # characters of a Chinese number, and words of a decimal

UNSIGNED = (
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
    r"|(?<![\w.])\.[0-9]+)"
)
_NARROW = "\u00a0\u2007\u2009\u202f"  # spaces that do not end a line
_LOCAL = (
    r"[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?(?![0-9])"  # 1,00,000
    r"|[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}(?:,[0-9]+)?(?![0-9])"  # 1.234.567
    r"|[1-9][0-9]{0,2}(?:\.[0-9]{3})+,[0-9]{1,2}(?![0-9])"  # 1.234,56
    r"|[1-9][0-9]{0,2}(?:['’][0-9]{3})+(?:[.,][0-9]+)?(?![0-9])"  # 1'250
    r"|(?<!\w)[1-9][0-9]{0,2}(?:_[0-9]{3})+(?:\.[0-9]+)?(?!\w)"  # 1_250
    rf"|[1-9][0-9]{{0,2}}(?:[{_NARROW}][0-9]{{3}})+(?:[.,][0-9]+)?(?![0-9])"
    r"|(?<![(\[{,0-9])0,[0-9]+(?![,0-9])"  # 0,125
)
_LOOSE = (
    r"|[1-9][0-9]{0,2}(?: [0-9]{3})+(?:[.,][0-9]+)?(?![0-9.,]?[0-9])"  # 1 250
    r"|(?<![(\[{,])[0-9]+,[0-9]{1,2}(?![,0-9]|\s*(?:,|and\b|or\b|&)\s*[0-9])"  # 12,5
)
_EXPONENT = r"(?:[eE][+-]?[0-9]+(?!\w))?"
# A minus is a sign only where nothing stands before it that it could be subtracted from; with a
# space behind it, or as the word `minus`, only where a number is about to be named.
_SIGN = (
    r"(?:(?<![\w)\]%-])(?<![0-9)%] )[-−–]"
    r"|(?:^|(?<=[=(])|(?<=[=:(] )|(?<=\bis )|(?<=\bto )|(?<=\bbe )|(?<=\bwas ))"
    r"(?:[-−–] |[Mm]inus )|\b[Nn]egative )"
)
_CURRENCY = r"[$€£¥₹]"
_SCALES = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9}
_SCALES |= {"trillion": 12, "k": 3, "m": 6, "b": 9, "bn": 9}
_SCALES |= {"千": 3, "万": 4, "萬": 4, "億": 8, "亿": 8}
_SCALE_WORD = (
    r"(?:[ -]?(?P<scale>(?:hundred|thousand|lakh|million|crore|billion|trillion)(?=s?\b))"
    r"|(?P<myriad>[千万萬億亿]))"
)


def _grammar(*, loose: bool) -> re.Pattern:
    literal = rf"(?:{_LOCAL}{_LOOSE * loose}|{UNSIGNED}{_EXPONENT})"
    gap = r"(?: and | & |[ -])" if loose else " "
    thousands = r"(?P<kilo>[kK])(?!\w)" if loose else r"(?P<kilo>(?!))"
    return re.compile(
        r"(?=[-−–.0-9MmNn])(?:"
        r"(?:(?<![0-9:.,])(?P<hour>[0-9]{1,2}):(?P<minute>[0-5][0-9])(?![0-9:]))"
        rf"|(?P<sign>{_SIGN}(?:{_CURRENCY} ?)?)?(?P<money>(?<={_CURRENCY})|(?<={_CURRENCY} ))?"
        rf"(?:(?P<whole>[0-9]+){gap}(?=[0-9]+[/⁄][0-9]))?"
        rf"(?<![A-Za-z)\]]\^)(?P<top>{literal})(?:[/⁄](?P<bottom>{UNSIGNED}{_EXPONENT}))?"
        rf"(?:{_SCALE_WORD}|{thousands}|(?(money)(?P<short>[kKmMbB]|bn)(?!\w)|(?!)))?"
        r"(?P<pi> ?(?:π|pi\b))?)"
    )


_COMMA = re.compile(r",[0-9]{1,2}(?![0-9,])")  # found soon
_OF_SUM = r"[+*/×·÷=]"
_UNIT = r"(?:€|%|(?:[Ee]uros?|EUR|[kcm]?m|k?g|m?l|[Ll]iter|litros?|litres?)\b)"
_DECIMAL_COMMA = re.compile(
    rf"(?:(?<![\w.,]){_OF_SUM} ?|€ ?)[0-9]+,[0-9]{{1,2}}(?![0-9,])"
    rf"|(?<![0-9.,\[{{])[0-9]+,[0-9]{{1,2}}(?: ?{_OF_SUM} ?[0-9]| ?{_UNIT})"
)
_DECIMAL_POINT = re.compile(r"(?<![0-9.,])[0-9]+\.[0-9]{1,2}(?![0-9.])|,[0-9]{3}\.[0-9]")
_CONTINENTAL = re.compile(
    r"(?<![0-9.,])(?:(?:[0-9]{1,3}(?:\.[0-9]{3})+|[0-9]+),[0-9]+"
    r"|[1-9][0-9]{0,2}(?:\.[0-9]{3})+)(?![0-9]|[.,][0-9])"
)

_CLEAR = _grammar(loose=False)
_EXPECTED = _grammar(loose=True)
_LITERAL_OF_DECIMAL_COMMA = re.compile(r"0,[0-9]+|[0-9]+,[0-9]{1,2}")

_SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_SMALL += ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"]
_SMALL += ["eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: Fraction(i) for i, word in enumerate(_SMALL)}
_WORDS |= {word: Fraction(10 * i) for i, word in enumerate(_TENS, start=2)}
_MULTIPLES = {word: Fraction(10 ** _SCALES[word]) for word in _SCALES if len(word) > 2}
_MULTIPLES["dozen"] = Fraction(12)
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6}
_PARTS |= {"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}
COUNTING_WORD = "|".join([*_WORDS, *_MULTIPLES])
_PART = "|".join(_PARTS)
_LARGE = "hundred|thousand|million|billion|dozen"
_NEXT = rf"(?:[\s-]+|\s+and\s+(?!\w+[\s-]+(?:{_PART})\b))(?:{COUNTING_WORD})s?"
_SPELT = re.compile(
    r"(?<![\w-])(?P<sign>(?:minus|negative) )?"
    rf"(?:(?:(?P<half>half )?(?P<an>an?)|(?P<lone>half)) (?:(?P<some>{_PART})(?!s)\b"
    rf"|(?P<large>(?:{_LARGE})(?:{_NEXT})*)\b)"
    rf"|(?P<only>half)\b|(?P<words>(?:{COUNTING_WORD})s?(?:{_NEXT})*)\b"
    rf"(?:\s+point(?P<decimals>(?:[\s-]+(?:{'|'.join(_SMALL[:10])})\b){{1,{_LONGEST_SPELT}}})"
    rf"|(?P<and>\s+and\s+(?:an?|(?P<count>{'|'.join(_SMALL)})))?[\s-]+(?P<part>{_PART})s?\b)?"
    rf"(?:\s+(?P<times>(?:{_LARGE})s?)\b)?)(?!-)",
    re.IGNORECASE,
)
_HAN_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}
_HAN_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_HAN_DIGIT = f"[{''.join(_HAN_DIGITS)}]"
_HAN_SIGN = f"[{''.join([*_HAN_DIGITS, *_HAN_UNITS, *_HAN_MYRIADS])}]"
_SOME = f"{{1,{_LONGEST_SPELT}}}"
_HAN = re.compile(
    rf"(?:^\W*|[是为為于於]\W*)(?P<sign>[负負])?"
    rf"(?:(?P<whole>{_HAN_SIGN}{_SOME})分之(?P<parts>{_HAN_SIGN}{_SOME})"
    rf"|(?P<number>{_HAN_SIGN}{_SOME})(?:[点點](?P<decimals>{_HAN_DIGIT}{_SOME}))?)"
    rf"(?!{_HAN_SIGN})(?<!一(?=[起些样樣般直定旦切共同]))"  # `一起` and `一样` are words
)
# `one of them`, `no one`: a pronoun.
_PRONOUN_BEFORE = re.compile(
    r"\b(?:no|any|every|some|each|the|this|that|another|which|only)\s+$", re.I
)
_PRONOUN_BEHIND = re.compile(
    r"\s+(?:of|another|that|who|which|by|at a time|can|is|has|was)\b", re.I
)

_VULGAR = re.compile(r"([0-9])?[  ]?([¼-¾⅐-⅞])")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile(r"(?<=[0-9)])[⁻⁰¹²³⁴-⁹]+")


def with_points(text: str) -> str:
    """Writes decimal commas as points where the text says that its commas are such.

    It says so by a number like `2,5` beside a plus, times or equals sign, or before a unit or a
    percent sign, if there is none like `2.5`. Then `3,125` is three and an eighth, and `1.250` is
    twelve hundred and fifty.
    """
    if not _COMMA.search(text) or not _DECIMAL_COMMA.search(text) or _DECIMAL_POINT.search(text):
        return text
    return _CONTINENTAL.sub(lambda m: m[0].replace(".", "").replace(",", "."), text)


def find_numbers(text: str) -> list[Fraction | None]:
    """Returns the numbers in `text` in order; None stands for one that has no value: it is beyond
    `LIMIT`, x/0, a multiple of pi, or a time such as 5:30."""
    return [value for match in _CLEAR.finditer(fold_numbers(text)) for value in _values(match)]


def first_number(text: str) -> list[Fraction | None]:
    """Returns the first number of `text`, where an answer is expected, as a list of at most one.

    Spelt numbers count at the start of `text`, or where there are no digits.
    """
    text = fold_numbers(text)
    match = _EXPECTED.search(text)
    spelt = _first_spelt(text, before=match.start() if match else None)
    if spelt is None and not text.isascii():
        spelt = _first_han(text, before=match.start() if match else None)
    if spelt is not None:
        return [spelt]
    return _values(match)[:1] if match else []


def spelt_numbers(text: str) -> list[Fraction]:
    """Returns the numbers in words in `text`, in order: `twenty-five`, `half`, `two dozen`."""
    values = (_spelt(match, text) for match in _SPELT.finditer(text))
    return [value for value in values if value is not None]


def only_number(text: str) -> list[Fraction | None]:
    """Returns the number of a text that has no other, read as `first_number` does; else []."""
    text = fold_numbers(text)
    match = _EXPECTED.search(text)
    if match and (any(c.isdigit() for c in text[match.end() :]) or len(_values(match)) > 1):
        return []
    return first_number(text)


def fold_numbers(text: str) -> str:
    """Writes other scripts' digits, `½` and `10⁴` as `0-9`, `1/2` and `10^{4}`."""
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    return _VULGAR.sub(_vulgar, text).translate(ASCII_FORMS)


def read_literal(literal: str) -> Fraction | None:
    """Reads one unsigned literal such as `1,000`, `.5` or `1e3`; None if it is beyond `LIMIT`."""
    mantissa, _, exponent = literal.replace(",", "").lower().partition("e")
    if len(mantissa) > _LONGEST_LITERAL or len(exponent) > 4:
        return None
    if mantissa.isdecimal() and not exponent:
        return bounded(Fraction(int(mantissa)))
    return bounded(Fraction(f"{mantissa}e{exponent or 0}"))


def format_number(value: Fraction) -> str:
    """Writes `value` in its normal form: `18`, `-0.75`, or `1/3` where no short decimal exists."""
    for places in range(_LONGEST_DECIMAL + 1):
        scaled = value * 10**places
        if scaled.denominator == 1:
            return _with_point(scaled.numerator, places)
    return f"{value.numerator}/{value.denominator}"


def bounded(value: Fraction) -> Fraction | None:
    """Returns `value`, or None if it is beyond `LIMIT`."""
    return value if abs(value.numerator) < LIMIT and value.denominator < LIMIT else None


class _AsciiForms(dict):
    """For str.translate: digits of any script, full-width signs and a few stops as ASCII."""

    def __missing__(self, code: int) -> str | int:
        digit = unicodedata.decimal(chr(code), None)
        wide = code - 0xFEE0 if 0xFF01 <= code <= 0xFF5E else code
        self[code] = wide if digit is None else str(digit)
        return self[code]


ASCII_FORMS = _AsciiForms({ord("٫"): ".", ord("٬"): ",", ord("。"): ".\n", ord("\u3000"): " "})


def _with_point(scaled: int, places: int) -> str:
    digits = str(abs(scaled)).zfill(places + 1)
    point = len(digits) - places
    return "-" * (scaled < 0) + digits[:point] + ("." + digits[point:] if places else "")


def _vulgar(match: re.Match) -> str:
    part = Fraction(unicodedata.numeric(match[2])).limit_denominator(10)
    return f"{match[1] + ' ' if match[1] else ''}{part.numerator}/{part.denominator}"


def _values(match: re.Match) -> list[Fraction | None]:
    if match["hour"]:  # a time of day is a number on the hour alone: `5:00 pm` is 5
        return [Fraction(int(match["hour"])) if match["minute"] == "00" else None]
    if match["pi"]:
        return [None]
    value = _read_local(match["top"])
    if match["bottom"]:
        value = _divide(value, read_literal(match["bottom"]))
    scale = match["scale"] or match["myriad"] or match["kilo"] or match["short"]
    if scale and value is not None:
        value = bounded(value * 10 ** _SCALES[scale.lower()])
    values: list[Fraction | None] = [value]
    if match["whole"]:
        whole = read_literal(match["whole"])
        if whole is not None and value is not None and value < 1:
            values = [bounded(whole + value)]
        else:  # `10 20/5` is two numbers, not a mixed one
            values = [whole, value]
    if match["sign"] and values[0] is not None:
        values[0] = -values[0]
    return values


def _read_local(literal: str) -> Fraction | None:
    """Reads a literal with the separators of any locale: the last of `.` and `,` is the point."""
    if literal.isdecimal():
        return read_literal(literal)
    literal = re.sub(rf"['’ _{_NARROW}]", "", literal)
    point, comma = literal.rfind("."), literal.rfind(",")
    if comma > point >= 0 or _LITERAL_OF_DECIMAL_COMMA.fullmatch(literal):
        literal = literal.replace(".", "").replace(",", ".")
    elif literal.count(".") > 1:
        literal = literal.replace(".", "")
    return read_literal(literal)


def _divide(top: Fraction | None, bottom: Fraction | None) -> Fraction | None:
    return None if top is None or not bottom else bounded(top / bottom)


def _first_spelt(text: str, before: int | None) -> Fraction | None:
    """The first number in words; where there are digits from `before` on, at the start alone."""
    for match in _SPELT.finditer(text, 0, len(text) if before is None else before):
        if before is not None and match.start() > 0:
            return None
        value = _spelt(match, text)
        if value is not None:
            return value
    return None


def _spelt(match: re.Match, text: str) -> Fraction | None:
    value: Fraction | None
    if match["some"]:
        value = Fraction(1, _PARTS[match["some"].lower()])
        value = value / 2 if match["half"] or match["lone"] else value
    elif match["large"]:
        value = _cardinal(match["large"])
        if value is not None and (match["half"] or match["lone"]):  # `half a million`
            value = value / 2 if " " not in match["large"] else None
    elif match["only"]:
        value = Fraction(1, 2)
    else:
        value = _cardinal(match["words"])
        if value is not None and match["decimals"]:
            digits = "".join(
                str(_WORDS[word]) for word in re.findall(r"\w+", match["decimals"].lower())
            )
            value += Fraction(f"0.{digits}")
        elif value is not None and match["part"]:
            part = Fraction(1, _PARTS[match["part"].lower()])
            count = _WORDS.get((match["count"] or "one").lower(), Fraction(1))
            value = value + count * part if match["and"] else value * part
        elif value == 1 and (
            _PRONOUN_BEHIND.match(text, match.end())
            or _PRONOUN_BEFORE.search(text, 0, match.start())
        ):
            return None
        if value is not None and match["times"]:
            value *= _MULTIPLES[match["times"].lower().removesuffix("s")]
    return value if value is None or not match["sign"] else -value


def _first_han(text: str, before: int | None) -> Fraction | None:
    """The first Chinese number that begins `text` or stands behind a verb such as `是`."""
    match = _HAN.search(text, 0, len(text) if before is None else before)
    if not match:
        return None
    if match["parts"]:
        whole, parts = _han(match["whole"]), _han(match["parts"])
        value = parts if match["whole"] == "百" else _divide(parts, whole)  # a percent sign
    else:
        value = _han(match["number"])
        if value is not None and match["decimals"]:
            value += Fraction(f"0.{''.join(str(_HAN_DIGITS[c]) for c in match['decimals'])}")
    return value if value is None or not match["sign"] else -value


def _han(digits: str) -> Fraction | None:
    """`一百零五` is 105, `二〇二四` is 2024, `五百二` is 520; None for what is no number."""
    if len(digits) > 1 and all(c in _HAN_DIGITS for c in digits):
        return Fraction(int("".join(str(_HAN_DIGITS[c]) for c in digits)))
    total = current = 0
    digit, unit = None, 1
    for c in digits:
        if c in _HAN_DIGITS:
            if digit:
                return None
            digit, unit = _HAN_DIGITS[c], 1 if c in "零〇" else unit
        elif c in _HAN_UNITS:
            unit = _HAN_UNITS[c]
            current += (1 if digit is None else digit) * unit
            digit = None
        else:
            unit = _HAN_MYRIADS[c]
            total += (current + (digit or 0) or 1) * unit
            current, digit = 0, None
    return Fraction(total + current + (digit or 0) * max(unit // 10, 1))


def _cardinal(words: str) -> Fraction | None:
    """`three hundred and five` is 305; None for what is no single number, such as `two three`."""
    total, current, room = Fraction(0), Fraction(0), None
    for word in re.findall(r"[a-z]+", words.lower()):
        word = word if word in _WORDS or word in _MULTIPLES else word.removesuffix("s")
        if word in _WORDS:
            value = _WORDS[word]
            if room is not None and not 0 < value < room:
                return None
            current += value
            room = Fraction(10) if value >= 20 else Fraction(1)
        elif word in _MULTIPLES:
            if word in ("hundred", "dozen"):
                current = (current or 1) * _MULTIPLES[word]
            else:
                total, current = total + (current or 1) * _MULTIPLES[word], Fraction(0)
            room = Fraction(100)
    return total + current
