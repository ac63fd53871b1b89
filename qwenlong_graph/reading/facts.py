"""The hard facts in a stretch of text: figures, dates, codes, names, and which way it speaks.

Everything here works on text that `evidence.normalise` has been through and gives offsets into
it. Two readings of a fact are equal when their values are, however they are written: "1,200"
is "1200" and "twelve hundred", "4.20" is "4.2", "5 minutes" are "300 s", "4 March 1907" is
"1907-03-04". Codes (versions, identifiers, clock times) are compared as they are written.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from string import ascii_uppercase

__all__ = [
    "BEGINNING_LETTERS",
    "OPENING_WORDS",
    "Code",
    "Date",
    "Facts",
    "Figure",
    "Name",
    "capitalised_words",
    "clauses",
    "content_word_at",
    "content_words",
    "direction_conflict",
    "facts",
    "fold",
    "folded_text",
    "holds_name",
    "is_negated",
    "is_ordinary",
    "name_token",
    "negated_words",
    "same_direction",
    "same_word",
    "spellings",
    "stem",
]


@dataclass(frozen=True)
class Figure:
    """A number. `value` and `step` (the worth of its last digit that is not a closing zero) are
    in the base unit of `unit`; `unit` is "" where none is known, `noun` the word it counts.
    """

    start: int
    end: int
    value: Fraction
    unit: str
    noun: str
    step: Fraction
    marker: str  # "", "about", "over" or "under"
    scale: int  # 1, or what a magnitude word multiplied the written number by
    factor: Fraction  # how many base units one of its written unit is
    is_word: bool
    is_ordinal: bool = False


@dataclass(frozen=True)
class Date:
    """A date or a part of one; what is not stated is None. A decade has `is_decade`."""

    start: int
    end: int
    year: int | None = None
    month: int | None = None
    day: int | None = None
    weekday: int | None = None
    is_decade: bool = False


@dataclass(frozen=True)
class Code:
    """A clock time, version or identifier with digits in it; `key` is its comparable form."""

    start: int
    end: int
    key: str


@dataclass(frozen=True)
class Name:
    """A run of capitalised words. `tokens` are folded, without titles and particles.

    `is_opening` says that its first word may be capitalised only because a sentence begins.
    """

    start: int
    end: int
    tokens: tuple[str, ...]
    is_opening: bool


@dataclass(frozen=True)
class Facts:
    """All facts of one text, each kind in reading order."""

    figures: tuple[Figure, ...] = ()
    dates: tuple[Date, ...] = ()
    codes: tuple[Code, ...] = ()
    names: tuple[Name, ...] = ()
    scale_note: int = field(default=1)
    """1,000 where the text says "in thousands" (or millions, billions): figures without a
    magnitude of their own may stand for that many times their value."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- words ---------------------------------------------------------------------------------

_FUNCTION_WORDS = _words(
    """
    a about above across after again against ago all almost along already also although always am
    among an and another any anyone anything are around as at away back be became because become
    been before began begin behind being below between both but by came can cannot come could did
    do does doing done down during each either else enough even ever every everyone everything few
    first for former from further gave get give given go goes going gone got had has have having he
    hence her here hers herself him himself his how however i if in indeed instead into is it its
    itself just last later latter least less let like likely made make makes making many may maybe
    me mean might more moreover most mostly much must my near nearly neither never nevertheless
    next no nobody none nor not nothing now of off often on once one only onto or other others
    otherwise our ours out over own per perhaps please rather said same say says second see seen
    she should since so some someone something soon still such take taken than that the their
    theirs them themselves then there thereby therefore these they third this those though through
    throughout thus to together too took toward towards under until unless up upon us use used uses
    using very was we well went were what whatever when where whereas whether which while who whom
    whose why will with within without would yes yet you your yours
    """
)

# Capitalised at the start of a sentence, these are no names: ordinary words that open the
# sentences of answers. Nouns in them that stand in the evidence need no entry.
OPENING_WORDS = _FUNCTION_WORDS | _words(
    """
    according accordingly additionally additional afterwards answer apart approximately article
    assuming average based bed besides big book both budget capital cash cause chapter children city
    claim clause climate clearly code company compared conclusion consequently context cost country
    court crime current currently data date day death debt demand despite detail disk document
    documents due early earlier east economic eight eleven employee error eventually everybody
    evidence example except fact figure final finally finance find five food forty four friend
    full fund fifty furthermore general generally good government great gross group growth half
    health heat help high hundred image importantly income industry initially interest interestingly
    inventory iron item key labour land large late law lead line list loan local long love low main
    man management market medical member men memory method million modern money month mortality
    mother name net new nine none north note notably number oil old open order original originally
    output overall own page paper part people period photo plan point power present previous price
    prior private problem process product production profit project public quality quarter question
    quite rain reason recent recently regarding report research result revenue review rich risk
    road rule sale school science section separately seven several share short similarly simply
    site six small social solution source south special specifically staff start state step stock
    story strong subsequently summary supply support system table tax team technology ten term test
    text thanks thirty thousand three time title today ton tonight total town trade traffic
    training twelve twenty two type unfortunately unlike usually value version view wage war water
    way weather west white whole wind winter woman women word work world worth year young zero
    """
)
_COMMON_ENDING = re.compile(
    r"(?:tion|sion|ment|ity|ness|ing|ed|ly|ism|ance|ence|ship|age|able|ible|ful|less|ous|ive|ship"
    r"|hood|out|ware|[^aious]s|hesis|ology|graphy)\Z"
)

_TITLES = _words(
    """
    mr mrs ms miss mx dr doctor prof professor sir dame lord lady captain capt colonel col major
    general gen sergeant sgt lieutenant lt president vice minister prime senator sen governor gov
    king queen prince princess count countess duke duchess earl baron pope saint st rev reverend
    father sister brother judge justice mayor chairman chairwoman chair director ceo cfo jr sr
    esq j jj ltd limited inc incorporated corp corporation co company plc llc gmbh ag sa nv
    """
)
# "Article 12" is a figure with a label, not a name; so are the parts of a book.
_LABELS = _words(
    """
    article articles section sections chapter chapters clause clauses part figure fig table
    appendix annex schedule paragraph para page pages no number volume vol item step phase version
    exhibit rule note line row column question answer fy fiscal total
    """
)
_PARTICLES = _words("of the de van von der den la le du di da del al bin ibn & for")

_PLACES = {"u.s.a": "unitedstates", "u.s": "unitedstates", "u.k": "unitedkingdom", "e.u": "eu"}
_ACRONYMS = {"US": "unitedstates", "USA": "unitedstates", "UK": "unitedkingdom"}
_SPELLED_OUT = (
    (re.compile(r"\bUnited States(?: of America)?\b"), "unitedstates"),
    (re.compile(r"\bUnited Kingdom\b"), "unitedkingdom"),
    (re.compile(r"\bEuropean Union\b"), "eu"),
    (re.compile(r"\bUnited Nations\b"), "un"),
)
_PEOPLES = {
    "american": "america",
    "australian": "australia",
    "austrian": "austria",
    "belgian": "belgium",
    "brazilian": "brazil",
    "british": "britain",
    "canadian": "canada",
    "chinese": "china",
    "danish": "denmark",
    "dutch": "netherlands",
    "egyptian": "egypt",
    "european": "europe",
    "finnish": "finland",
    "french": "france",
    "german": "germany",
    "greek": "greece",
    "hungarian": "hungary",
    "indian": "india",
    "irish": "ireland",
    "israeli": "israel",
    "italian": "italy",
    "japanese": "japan",
    "korean": "korea",
    "mexican": "mexico",
    "norwegian": "norway",
    "polish": "poland",
    "portuguese": "portugal",
    "prussian": "prussia",
    "roman": "rome",
    "russian": "russia",
    "scottish": "scotland",
    "spanish": "spain",
    "swedish": "sweden",
    "swiss": "switzerland",
    "turkish": "turkey",
    "ukrainian": "ukraine",
    "welsh": "wales",
}

_IRREGULAR = {
    "ate": "eat",
    "began": "begin",
    "begun": "begin",
    "bought": "buy",
    "built": "build",
    "chose": "choose",
    "chosen": "choose",
    "died": "die",
    "drew": "draw",
    "fallen": "fall",
    "fell": "fall",
    "found": "find",
    "gave": "give",
    "given": "give",
    "grew": "grow",
    "grown": "grow",
    "held": "hold",
    "kept": "keep",
    "knew": "know",
    "known": "know",
    "led": "lead",
    "left": "leave",
    "lost": "lose",
    "married": "marry",
    "men": "man",
    "met": "meet",
    "paid": "pay",
    "ran": "run",
    "risen": "rise",
    "rose": "rise",
    "sank": "sink",
    "saw": "see",
    "sent": "send",
    "sold": "sell",
    "spent": "spend",
    "stood": "stand",
    "sunk": "sink",
    "taught": "teach",
    "told": "tell",
    "women": "woman",
    "won": "win",
    "written": "write",
    "wrote": "write",
}

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_WHOLE_WORD = re.compile(rf"(?<![^\W\d_])(?<![^\W\d_]'){_WORD.pattern}")


@functools.lru_cache(maxsize=8192)
def fold(word: str) -> str:
    """The word without case, accents and a possessive ending."""
    return _folded_letters(word).removesuffix("'s").rstrip("'")


def _folded_letters(word: str) -> str:
    if not word.isascii():
        decomposed = unicodedata.normalize("NFKD", word)
        word = "".join(mark for mark in decomposed if not unicodedata.combining(mark))
    return word.casefold()


def folded_text(text: str) -> tuple[str, str]:
    """The text with its letters folded as in `fold`, as long as it was; and those of its letters
    that fold to several, such as "ß", and are left as they are."""
    if text.isascii():
        return text.lower(), ""
    unfolded = ""
    for letter in sorted(set(text)):
        if letter.isascii() or not letter.isalnum():
            continue
        folded = _folded_letters(letter)
        if len(folded) == 1:
            text = text.replace(letter, folded)
        else:
            unfolded += letter
    for letter in ascii_uppercase:
        text = text.replace(letter, letter.lower())
    return text, unfolded


@functools.lru_cache(maxsize=8192)
def stem(word: str) -> str:
    """A rough stem: enough to see that "increases" and "increased" are one word."""
    word = fold(word)
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, rest in (("ies", "y"), ("ied", "y")):
        if word.endswith(ending) and len(word) > 5:
            return word[: -len(ending)] + rest
    for ending in ("ing", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "ls":
        word = word[:-1]
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


BEGINNING_LETTERS = 5
"""Words are looked up by so many letters of their stem: forms of one word share them."""


@functools.lru_cache(maxsize=4096)
def spellings(beginning: str) -> tuple[str, ...]:
    """How a folded word may begin whose stem has this beginning: "citi" for "city"."""
    forms = [beginning]
    if beginning.endswith("y"):
        forms.append(beginning[:-1] + "i")
    forms += [form for form, root in _IRREGULAR.items() if root.startswith(beginning)]
    return tuple(forms)


def same_word(one: str, other: str) -> bool:
    """True if two stems are forms of one word ("approv" and "approval")."""
    if len(one) > len(other):
        one, other = other, one
    return one == other or (len(one) >= 5 and other.startswith(one) and len(other) - len(one) <= 5)


def content_words(text: str) -> list[str]:
    """The stems of the words that carry meaning, in reading order; no figures."""
    return [stemmed for word in _WORD.findall(text) if (stemmed := _content_stem(word))]


@functools.lru_cache(maxsize=8192)
def _content_stem(word: str) -> str:
    folded = fold(word)
    if len(folded) < 2 or folded in _FUNCTION_WORDS or folded.endswith("n't"):
        return ""
    return stem(folded)


def content_word_at(text: str, start: int) -> str:
    """The stem of the content word that begins exactly there, "" where none does."""
    word = _WHOLE_WORD.match(text, start)
    return _content_stem(word[0]) if word else ""


# --- which way a text speaks -----------------------------------------------------------------

_NEGATION = re.compile(
    r"\b(?:not|no|never|neither|nor|none|nobody|nothing|nowhere|without|cannot|hardly|barely"
    r"|scarcely|unable|untrue|false|falsely|den(?:y|ies|ied|ying|ial)|fail(?:s|ed|ing|ure)?"
    r"|refus(?:e|es|ed|ing|al)|lack(?:s|ed|ing)?|\w+n't)\b",
    re.IGNORECASE,
)
_NO_NEGATION = re.compile(
    r"\bnot only\b|\bno doubt\b|\bno\.? ?\d|\bnos\. ?\d|\bor (?:no|not|without)\b", re.IGNORECASE
)
# Not at "that", "or", "if": a denial before them reaches over them.
_CLAUSE_BORDER = re.compile(
    r"[,;:()]+(?!\d)|[.!?](?=\s)| - |--+"
    r"|\b(?:and|but|which|who|whom|although|though|while|whereas|because|since|however|yet)\b",
    re.IGNORECASE,
)

_OPPOSITES: tuple[tuple[str, str], ...] = (
    (
        "increase increased increasing rise rose risen rising grow grew grown growth climb climbed"
        " jump jumped surge surged up higher gain gained expand expanded raise raised",
        "decrease decreased decreasing fall fell fallen falling decline declined drop dropped"
        " shrink shrank reduce reduced reduction down lower lowered loss lost cut shrunk",
    ),
    (
        "more over above exceed exceeded exceeding greater",
        "less fewer under below smaller",
    ),
    ("before prior earlier preceding", "after later following subsequent subsequently"),
    (
        "buy bought buys buying buyer purchase purchased acquire acquired",
        "sell sold sells selling seller",
    ),
    (
        "accept accepted accepts approve approved approves approval grant granted allow allowed"
        " allows permit permitted permits uphold upheld affirm affirmed",
        "reject rejected rejects rejection deny denied denies refuse refused forbid forbidden"
        " prohibit prohibited prohibits overturn overturned reversed dismissed",
    ),
    ("first earliest", "last latest final"),
    ("gain gains profit profits", "loss losses"),
    ("win won wins winner", "lose lost loses loser"),
    ("maximum most", "minimum least"),
    ("start started begin began begun open opened", "end ended finish finished close closed"),
    ("north northern", "south southern"),
    ("east eastern", "west western"),
    ("left", "right"),
    ("early", "late"),
    ("old older oldest", "new newer newest young younger youngest"),
    ("import imports imported", "export exports exported"),
    ("asset assets", "liability liabilities"),
    ("plaintiff claimant", "defendant"),
    ("appellant", "respondent appellee"),
    ("landlord lessor", "tenant lessee"),
    ("lender lend lent", "borrower borrow borrowed"),
    ("employer", "employee employees"),
    ("enable enabled enables", "disable disabled disables"),
    ("add added adds", "remove removed removes"),
    ("include included includes including", "exclude excluded excludes excluding"),
    ("pass passed", "fail failed"),
    ("guilty convicted", "innocent acquitted"),
    ("arrive arrived arrives", "leave left depart departed"),
    ("inside internal", "outside external"),
    ("legal lawful", "illegal unlawful"),
    ("true", "false untrue"),
    ("hot hotter warm", "cold colder cool"),
    ("husband father son brother king", "wife mother daughter sister queen"),
    ("domestic", "foreign"),
    ("public", "private"),
    ("alive survived", "dead died killed"),
    ("success successful succeeded", "failure failed unsuccessful"),
    ("positive", "negative"),
    ("high highest", "low lowest"),
    ("long longer", "short shorter"),
    ("strong stronger", "weak weaker"),
    ("join joined", "left quit resigned"),
    ("hire hired appointed", "fired dismissed sacked"),
)
_SIDES: dict[str, set[tuple[int, int]]] = {}
for _number, _pair in enumerate(_OPPOSITES):
    for _side, _forms in enumerate(_pair):
        for _form in _forms.split():
            _SIDES.setdefault(_form, set()).add((_number, _side))
_STEM_SIDES: dict[str, set[tuple[int, int]]] = {}
for _form, _form_sides in _SIDES.items():
    _STEM_SIDES.setdefault(stem(_form), set()).update(_form_sides)


def holds_name(name: Name, text: str) -> bool:
    """True if the text holds the name: all its words, and together where it gives a full name.

    "Clara Holm" does not stand in "Clara Voss met Anders Holm", but in "Holm, called Clara".
    """
    there = facts(text).names
    if len(name.tokens) == 1 and len(name.tokens[0]) > 1:
        # "ESO" stands in "European Southern Observatory", not the other way round.
        letters = name.tokens[0].replace(".", "")
        if any("".join(token[0] for token in other.tokens) == letters for other in there):
            return True
    words = {fold(word) for word in _WORD.findall(text)}
    words.update(token for other in there for token in other.tokens)
    if not all(_has_token(token, words) for token in name.tokens):
        return False
    runs = [set(other.tokens) for other in there]
    last = name.tokens[-1]
    return any(all(_has_token(token, run) for token in name.tokens) for run in runs) or not any(
        last in run and run - set(name.tokens) for run in runs
    )


def _has_token(token: str, words: set[str]) -> bool:
    if token in words or token.removesuffix("s") in words or token + "s" in words:
        return True
    # "T. Roosevelt" stands in "Theodore Roosevelt", not the other way round.
    return len(token) == 1 and any(word.startswith(token) for word in words)


def is_negated(clause: str) -> bool:
    """True if the clause denies something, by a negation or a verb such as "refuse"."""
    return bool(_NEGATION.search(_NO_NEGATION.sub(" ", clause)))


def negated_words(text: str) -> set[str]:
    """For each negation the stem of the word that it bears on: the next one with a meaning."""
    negated: set[str] = set()
    for clause in clauses(text):
        clause = _NO_NEGATION.sub(" ", clause)
        for match in _NEGATION.finditer(clause):
            following = content_words(clause[match.end() :])
            negated.update(following[:1] or content_words(clause[: match.start()])[-1:])
    return negated


def clauses(text: str) -> list[str]:
    """The parts of a text within which a negation is taken to reach."""
    return [part for part in _CLAUSE_BORDER.split(text) if part.strip()]


def same_direction(one: str, other: str) -> bool:
    """True if two stems stand on one side of a pair of opposites ("rise", "increas")."""
    return bool(_STEM_SIDES.get(one, set()) & _STEM_SIDES.get(other, set()))


def direction_conflict(one: str, other: str) -> bool:
    """True if one text says "rise" (or "before", "buy" ...) where the other says only "fall"."""
    first, second = _sides(one), _sides(other)
    return any(
        (number, 1 - side) in second and (number, side) not in second
        # A word may sit on both sides of different pairs; within one text a pair that holds
        # both of its sides says nothing.
        for number, side in first
        if (number, 1 - side) not in first
    )


def _sides(text: str) -> set[tuple[int, int]]:
    sides: set[tuple[int, int]] = set()
    for word in _WORD.findall(text):
        sides |= _SIDES.get(word.casefold(), set())
    return sides


# --- dates -----------------------------------------------------------------------------------

_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_MONTH_NUMBERS = {name[:3].lower(): number for number, name in enumerate(_MONTHS, 1)}
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTH = "(?P<month>{})".format(
    "|".join(
        sorted(
            {
                form
                for name in _MONTHS
                for form in (name, name.upper(), name[:3], name[:3].upper(), name[:4])
                if name not in ("May", "June", "July") or form in (name, name.upper())
            }
            | {"Jun", "Jul", "JUN", "JUL"},
            key=len,
            reverse=True,
        )
    )
)
_YEAR = r"(?P<year>1\d{3}|20\d{2}|21\d{2})"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_DATE_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(?<!\d){_YEAR}-(?P<number>\d{{2}})-(?P<day>\d{{2}})(?!\d)T?",
        r"(?<![\d/.])(?P<one>\d{1,2})[/.](?P<two>\d{1,2})[/.](?P<year>[12]\d{3})(?![\d/])",
        rf"(?<![\d.,]){_DAY}(?: day)?(?: of)? {_MONTH}\b\.?(?:,? {_YEAR}\b)?",
        rf"\b{_MONTH}\b\.? {_DAY}(?![\d%]|,\d|\.\d)(?:,? {_YEAR}\b)?",
        rf"\b{_MONTH}\b\.?,?(?: of)? {_YEAR}\b",
        r"\b(?P<year>1\d{3}|20\d{2}) ?[-/] ?(?P<until>\d{4}|\d{2})(?![\d-])",
        r"\b(?P<decade>1\d{2}0|20\d0)s\b",
        r"\bFY ?'?(?P<year>20\d{2}|19\d{2})\b",
    )
)
_LONE_MONTH = re.compile(
    rf"\b(?:(?<=\bin )|(?<=\bof )|(?<=\bby )|(?<=\bsince )|(?<=\buntil )|(?<=\bearly )"
    rf"|(?<=\blate )|(?<=\bto )|(?<=\bfrom )|(?<=\blast )|(?<=\bthis ))(?P<may>May|March)\b"
    rf"|\b(?!May\b|March\b|Mar\b|Dec\b|Sep\b|Jan\b){_MONTH}\b"
)
_WEEKDAY = re.compile(r"\b(?P<weekday>{})s?\b".format("|".join(_WEEKDAYS)))


def _dates(text: str) -> tuple[list[Date], str]:
    """The dates, and the text with them blanked out."""
    dates: list[Date] = []
    for form in (*_DATE_FORMS, _LONE_MONTH, _WEEKDAY):
        found = [date for match in form.finditer(text) for date in _date_of(match)]
        dates += found
        text = _blank(text, found)
    return dates, text


def _date_of(match: re.Match[str]) -> list[Date]:
    part = match.groupdict()
    start, end = match.span()
    if part.get("weekday"):
        return [Date(start, end, weekday=_WEEKDAYS.index(part["weekday"]))]
    if part.get("decade"):
        return [Date(start, end, year=int(part["decade"]), is_decade=True)]
    year = int(part["year"]) if part.get("year") else None
    if part.get("until"):
        until = part["until"]
        last = int(part["year"][: 4 - len(until)] + until)
        if not year or last <= year or last > 2199:
            return []
        border = match.start("until")
        return [Date(start, border, year=year), Date(border, end, year=last)]
    day = int(part["day"]) if part.get("day") else None
    if part.get("one"):
        # 11/02/2024 is read as the day first, everywhere, unless that gives no month.
        one, two = int(part["one"]), int(part["two"])
        day, month = (two, one) if two > 12 else (one, two)
    elif part.get("number"):
        month = int(part["number"])
    elif name := part.get("may") or part.get("month"):
        month = _MONTH_NUMBERS[name[:3].lower()]
    else:
        return [Date(start, end, year)]
    if not 1 <= month <= 12 or (day is not None and not 1 <= day <= 31):
        return []
    return [Date(start, end, year, month, day)]


# --- codes -----------------------------------------------------------------------------------

_CLOCK = re.compile(
    r"(?<![\d:.])(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}))?(?![\d:])"
    r"(?: ?(?P<half>[ap])\.?m\b)?"
    r"|(?<![\d:.,])(?P<bare>\d{1,2}) ?(?P<bare_half>[ap])\.?m\b",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\W_]\w*(?:[-.:/#@]\w+)*")
_CURRENCY_TOKEN = re.compile(r"(?:USD|EUR|GBP|JPY|CHF|CNY|INR|RMB|Rs|US|AU|CA)\.?\d")


def _codes(text: str) -> tuple[list[Code], str]:
    """Clock times, versions and identifiers, and the text with them blanked out."""
    codes: list[Code] = []
    for match in _CLOCK.finditer(text):
        hour, half = int(match["hour"] or match["bare"]), match["half"] or match["bare_half"]
        if half:
            hour = hour % 12 + 12 * (half in "pP")
        second = f":{match['second']}" if match["second"] else ""
        key = f"{hour:02}:{match['minute'] or '00'}{second}"
        codes.append(Code(*match.span(), key))
    text = _blank(text, codes)
    found = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token.isalpha() or not any(map(str.isnumeric, token)):
            continue
        if _is_code(token):
            key = fold(token)
            if re.match(r"v\d", key):
                key = key[1:]
            found.append(Code(*match.span(), key))
    return codes + found, _blank(text, found)


def _is_code(token: str) -> bool:
    if _CURRENCY_TOKEN.match(token):
        return False
    if not token[0].isdecimal():
        return True
    if re.fullmatch(r"\d+(?:\.\d+){2,}[\w.-]*", token):
        return not re.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}", token)
    number = _NUMBER.match(token)
    rest = token[number.end() :] if number else token
    if not rest or rest[0] in "-/":
        return False  # "90-day", "3-5", "and/or 5/8": figures
    return not _ATTACHED.fullmatch(rest)


# --- figures ---------------------------------------------------------------------------------

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MAGNITUDES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_NUMBER_WORDS: dict[str, int] = {word: value for value, word in enumerate(_SMALL)}
_NUMBER_WORDS |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
_ORDINALS: dict[str, int] = {
    "first": 1,
    "second": 2,
    "third": 3,
    "fifth": 5,
    "eighth": 8,
    "ninth": 9,
} | {
    "twelfth": 12,
    "twentieth": 20,
    **{_SMALL[value] + "th": value for value in (4, 6, 7, 10, 11, *range(13, 20))},
}
_ANY_NUMBER_WORD = "|".join(
    sorted([*_NUMBER_WORDS, *_MAGNITUDES, *_ORDINALS], key=len, reverse=True)
)
_NUMBER_PHRASE = re.compile(
    rf"\b(?:{_ANY_NUMBER_WORD})\b(?:(?:[ -]| and )(?:{_ANY_NUMBER_WORD})\b)*", re.IGNORECASE
)

_CURRENCIES = {
    "us$": "USD",
    "$": "USD",
    "usd": "USD",
    "dollar": "USD",
    "dollars": "USD",
    "€": "EUR",
    "eur": "EUR",
    "euro": "EUR",
    "euros": "EUR",
    "£": "GBP",
    "gbp": "GBP",
    "pound": "GBP",
    "pounds": "GBP",
    "¥": "JPY",
    "jpy": "JPY",
    "yen": "JPY",
    "chf": "CHF",
    "francs": "CHF",
    "₹": "INR",
    "inr": "INR",
    "rs": "INR",
    "rupees": "INR",
    "cny": "CNY",
    "rmb": "CNY",
    "yuan": "CNY",
    "a$": "AUD",
    "aud": "AUD",
    "c$": "CAD",
    "cad": "CAD",
}

# Word or symbol -> (dimension, how many of the dimension's base unit it is).
_Unit = tuple[str, Fraction]


def _units(dimension: str, forms: dict[str, str]) -> dict[str, _Unit]:
    return {
        form: (dimension, Fraction(factor))
        for factor, names in forms.items()
        for form in names.split("|")
    }


_SYMBOLS: dict[str, _Unit] = {
    **_units("%", {"1": "%"}),
    **_units("points", {"1": "pp|p.p.", "0.01": "bps|bp"}),
    **_units("time", {"1": "s|sec|secs", "0.001": "ms", "60": "min|mins", "3600": "h|hr|hrs"}),
    **_units(
        "length",
        {"0.001": "mm", "0.01": "cm", "1": "m", "1000": "km", "0.3048": "ft", "1609.344": "mi"},
    ),
    **_units(
        "mass", {"0.000001": "mg", "0.001": "g", "1": "kg", "1000": "t", "0.45359237": "lb|lbs"}
    ),
    **_units("volume", {"0.001": "ml|mL", "1": "l|L"}),
    **_units("celsius", {"1": "°C|° C"}),
    **_units("fahrenheit", {"1": "°F|° F"}),
    **_units("angle", {"1": "°"}),
    **_units(
        "bytes",
        {
            "1": "B",
            str(2**10): "KB|kB|KiB",
            str(2**20): "MB|MiB",
            str(2**30): "GB|GiB",
            str(2**40): "TB|TiB",
        },
    ),
    **_units("power", {"1": "W", "1000": "kW", "1000000": "MW", "1000000000": "GW"}),
    **_units("energy", {"1": "Wh", "1000": "kWh", "1000000": "MWh", "1000000000": "GWh"}),
    **_units("frequency", {"1": "Hz", "1000": "kHz", "1000000": "MHz", "1000000000": "GHz"}),
}
_UNIT_WORDS: dict[str, _Unit] = {
    **_units("%", {"1": "percent|per cent|pct"}),
    **_units(
        "points",
        {
            "1": "percentage points|percentage point|percentage-points|percentage-point",
            "0.01": "basis points|basis point",
        },
    ),
    **_units(
        "time",
        {
            "0.001": "milliseconds|millisecond",
            "1": "seconds|second",
            "60": "minutes|minute",
            "3600": "hours|hour",
            "86400": "days|day",
            "604800": "weeks|week",
        },
    ),
    **_units(
        "months",
        {"1": "months|month", "12": "years|year", "120": "decades|decade", "1200": "centuries"},
    ),
    **_units(
        "length",
        {
            "0.001": "millimetres|millimeters",
            "0.01": "centimetres|centimeters",
            "1": "metres|metre|meters|meter",
            "1000": "kilometres|kilometre|kilometers|kilometer",
            "0.3048": "feet|foot",
            "0.0254": "inches|inch",
            "0.9144": "yards|yard",
            "1609.344": "miles|mile",
        },
    ),
    **_units(
        "mass",
        {
            "0.001": "grams|gram|grammes",
            "1": "kilograms|kilogram|kilogrammes",
            "1000": "tonnes|tonne|metric tons",
            "907.18474": "tons|ton",
        },
    ),
    **_units("volume", {"1": "litres|litre|liters|liter", "1000": "cubic metres|cubic meters"}),
    **_units("area", {"1": "square metres|square meters", "10000": "hectares|hectare"}),
    **_units("acres", {"1": "acres|acre"}),
    **_units("celsius", {"1": "degrees celsius|degree celsius|degrees centigrade"}),
    **_units("fahrenheit", {"1": "degrees fahrenheit|degree fahrenheit"}),
    **_units("angle", {"1": "degrees|degree"}),
    **_units("bytes", {"1": "bytes|byte", str(2**20): "megabytes", str(2**30): "gigabytes"}),
    **{word: (code, Fraction(1)) for word, code in _CURRENCIES.items() if word.isalpha()},
}


def _choice(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_NUMBER = re.compile(
    r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}(?!\d)"
    r"|\d+(?:_\d{3})+|\d+\.\d+|\d+,\d{1,2}(?![\d,])|\d+"
)
_PREFIX = (
    r"(?P<sign>(?<![\w.,)%])-)?"
    r"(?P<currency>(?:US|A|C|AU|CA)?\$|[€£¥₹]|\b(?:USD|EUR|GBP|JPY|CHF|CNY|INR|RMB|AUD|CAD|Rs)\.?)?"
    r" ?(?P<inner>-)?"
)
_FIGURE = re.compile(
    rf"{_PREFIX}(?<![\w.,]\d)(?P<number>{_NUMBER.pattern})(?P<fraction>[½¼¾⅓⅔])?"
    rf"|(?P<lone>[½¼¾⅓⅔])"
)
_FRACTIONS = {
    "½": Fraction(1, 2),
    "¼": Fraction(1, 4),
    "¾": Fraction(3, 4),
    "⅓": Fraction(1, 3),
    "⅔": Fraction(2, 3),
}
_MAGNITUDE = re.compile(
    rf"[ -]?(?P<word>(?i:{_choice(_MAGNITUDES)}|bn|mn|mln|tn))\b"
    r"|(?P<letter>[kKMBTm])(?![A-Za-z0-9])"
)
_SCALES = _MAGNITUDES | {
    "bn": 10**9,
    "mn": 10**6,
    "mln": 10**6,
    "tn": 10**12,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "m": 10**6,
    "B": 10**9,
    "T": 10**12,
}
_UNIT = re.compile(
    rf"(?:[ -]|\) )?(?:(?P<word>(?i:{_choice(_UNIT_WORDS)}))(?![A-Za-z0-9])"
    rf"|(?P<symbol>{_choice(_SYMBOLS)})(?![A-Za-z0-9]))"
)
_OF_MONEY = re.compile(r" of (?P<word>(?i:dollars|euros|pounds|yen|rupees|yuan))\b")
_ATTACHED = re.compile(
    rf"(?:st|nd|rd|th|s|[kKMBTm]|bn|mn|mln|tn|{_choice(_SYMBOLS)}|(?i:{_choice(_UNIT_WORDS)}))"
)
_REPEATED_IN_DIGITS = re.compile(r" ?\(\d{1,4}\)")  # "ninety (90) days"
_ORDINAL_ENDING = re.compile(r"(?:st|nd|rd|th)\b")
_NOUN = re.compile(r"[ -](?P<noun>[a-z]{3,})\b")
_MARKER = re.compile(
    r"(?P<about>\b(?:about|around|approximately|approx\.?|roughly|circa|some|nearly|almost"
    r"|close to)|~|≈)"
    r"|(?P<over>\b(?:over|more than|above|exceeding|exceeds|exceeded|at least|just over|upwards of)"
    r"|>|≥)"
    r"|(?P<under>\b(?:under|less than|fewer than|below|at most|just under|up to)|<|≤)",
    re.IGNORECASE,
)
_MARKER_REACH_CHARS = 22
_SCALE_NOTE = re.compile(r"\b(?:in|\$|USD|EUR|of) ?(?P<scale>thousands|millions|billions)\b", re.I)


def _figures(text: str) -> list[Figure]:
    figures = []
    for match in _FIGURE.finditer(text):
        if match["lone"]:
            value, step = _FRACTIONS[match["lone"]], Fraction(1, 100)
        else:
            value, step = _value_of(match["number"])
            value += _FRACTIONS.get(match["fraction"] or "", Fraction(0))
            if match["sign"] or (match["inner"] and match["currency"]):
                value = -value
        currency = _CURRENCIES.get((match["currency"] or "").lower().rstrip("."), "")
        start = match.start("number") if not match["lone"] else match.start()
        if currency or match["sign"]:
            start = match.start() + len(match[0]) - len(match[0].lstrip())
        figures.append(_finish(text, start, match.end(), value, step, currency, is_word=False))
    for start, end, number, is_ordinal in _spelled_numbers(text):
        figure = _finish(
            text, start, end, Fraction(number), _step_of(Fraction(number)), "", is_word=True
        )
        figures.append(_as_ordinal(figure) if is_ordinal else figure)
    return sorted(figures, key=lambda figure: figure.start)


def _as_ordinal(figure: Figure) -> Figure:
    return replace(figure, unit="", noun="", marker="", is_ordinal=True)


def _value_of(number: str) -> tuple[Fraction, Fraction]:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
        number = number.replace(",", "")
    elif "," in number:
        number = number.replace(".", "").replace(",", ".")
    elif number.count(".") > 1:
        number = number.replace(".", "")
    number = number.replace("_", "")
    value = Fraction(number) if len(number) < 60 else Fraction(int(number[:60].split(".")[0]))
    decimals = len(number.partition(".")[2])
    return value, Fraction(1, 10**decimals) if decimals else _step_of(value)


def _step_of(value: Fraction) -> Fraction:
    """The worth of the last digit of a whole number that is not a closing zero."""
    whole, step = abs(int(value)), 1
    while whole and whole % 10 == 0:
        whole, step = whole // 10, step * 10
    return Fraction(step)


def _finish(
    text: str,
    start: int,
    end: int,
    value: Fraction,
    step: Fraction,
    currency: str,
    *,
    is_word: bool,
) -> Figure:
    """Takes in what stands around a number: magnitude, unit, counted noun, marker."""
    scale, unit, factor, noun = 1, currency, Fraction(1), ""
    ordinal = None if is_word else _ORDINAL_ENDING.match(text, end)
    if ordinal:
        return _as_ordinal(
            Figure(start, ordinal.end(), value, "", "", step, "", 1, Fraction(1), False)
        )
    magnitude = _MAGNITUDE.match(text, end)
    if magnitude and not (magnitude["letter"] == "m" and not currency):
        name = magnitude["word"] or magnitude["letter"]
        scale = _SCALES[name if magnitude["letter"] else name.lower()]
        end = magnitude.end()
    closing = _REPEATED_IN_DIGITS.match(text, end) if is_word else None
    found = _UNIT.match(text, closing.end() if closing else end) or _OF_MONEY.match(text, end)
    if text[end : end + 1] == ")" and not found:
        found = _UNIT.match(text, end + 1)
    if found and not currency:
        symbol = found.groupdict().get("symbol")
        unit, factor = _SYMBOLS[symbol] if symbol else _UNIT_WORDS[found["word"].lower()]
        if not (closing or text[end : end + 1] == ")"):
            end = found.end()
    if not unit:
        following = _NOUN.match(text, end)
        if following and following["noun"] not in _FUNCTION_WORDS:
            noun = stem(following["noun"])
    before = text[max(0, start - _MARKER_REACH_CHARS) : start]
    marker = ""
    for mark in _MARKER.finditer(before):
        if re.fullmatch(r"\s*(?:an? |only )?", before[mark.end() :]):
            marker = mark.lastgroup or ""
    worth = scale * factor
    return Figure(
        start, end, value * worth, unit, noun, step * worth, marker, scale, factor, is_word
    )


def _spelled_numbers(text: str) -> list[tuple[int, int, int, bool]]:
    """(start, end, value, is ordinal) of numbers in words."""
    numbers = []
    for phrase in _NUMBER_PHRASE.finditer(text):
        if phrase.start() and text[phrase.start() - 1] == "-":
            continue
        if re.search(r"\d[ -]?\Z", text[max(0, phrase.start() - 2) : phrase.start()]):
            continue  # the magnitude of a figure in digits
        total = current = 0
        start = end = -1
        last, was_and = "", False
        for word in re.finditer(r"[A-Za-z]+", phrase[0]):
            name = word[0].lower()
            if name == "and":
                was_and = True
                continue
            fits = start >= 0 and _may_follow(last, name, was_and=was_and)
            if start >= 0 and not fits:
                numbers.append((start, end, total + current, last in _ORDINALS))
                total, current, start = 0, 0, -1
            if start < 0:
                start = phrase.start() + word.start()
            if name in _MAGNITUDES:
                current = max(current, 1) * _MAGNITUDES[name]
                if _MAGNITUDES[name] >= 1000:
                    total, current = total + current, 0
            else:
                current += (_NUMBER_WORDS | _ORDINALS).get(name, 0)
            end, last, was_and = phrase.start() + word.end(), name, False
        numbers.append((start, end, total + current, last in _ORDINALS))
    return numbers


def _may_follow(last: str, name: str, *, was_and: bool) -> bool:
    if was_and and last not in _MAGNITUDES:
        return False
    if name in _MAGNITUDES:
        return last not in _ORDINALS
    if last in _TENS:
        return 0 < (_NUMBER_WORDS | _ORDINALS).get(name, 0) < 10
    return last in _MAGNITUDES and last != "dozen"


# --- names -----------------------------------------------------------------------------------

_NAME_TOKEN = re.compile(
    r"(?:[A-Z]\.){2,}[A-Z]?"  # U.S.
    r"|[^\W\d_](?:[^\W\d_]|'(?=[^\W\d_]))*(?:-[^\W\d_]+)*\.?"
    r"|&"
)
_OPENS_SENTENCE = re.compile(r"(?:\A|[.!?:;|>\"(\[\]/=*#]|[-+] |\d[.)] )['\"(\[ ]*\Z")


def _names(text: str) -> list[Name]:
    names: list[Name] = []
    run: list[re.Match[str]] = []
    for match in _NAME_TOKEN.finditer(text):
        word = match[0]
        gap = text[run[-1].end() : match.start()] if run else ""
        continues = bool(run) and gap == " " and not _closes(run[-1][0])
        if _is_capitalised(word):
            if run and not continues:
                names += _name_of(text, run)
                run = []
            run.append(match)
        elif continues and word in _PARTICLES and (word != "the" or run[-1][0] in _PARTICLES):
            run.append(match)
        else:
            names += _name_of(text, run)
            run = []
    return names + _name_of(text, run)


def _closes(word: str) -> bool:
    """A full stop ends the run, unless it is that of an initial, a title or "U.S."."""
    if not word.endswith("."):
        return False
    bare = word[:-1]
    return not ("." in bare or len(bare) == 1 or fold(bare) in _TITLES)


def _is_capitalised(word: str) -> bool:
    return word[0].isupper() or (any(map(str.isupper, word[1:])) and not word.isupper())


def _name_of(text: str, run: list[re.Match[str]]) -> list[Name]:
    while run and not _is_capitalised(run[-1][0]):
        run = run[:-1]
    if not run:
        return []
    start, end = run[0].start(), run[-1].end() - _closes(run[-1][0])
    before = text[max(0, start - 8) : start]
    is_opening = (
        bool(_OPENS_SENTENCE.search(before))
        if len(before) == 8
        else (not before.strip() or bool(_OPENS_SENTENCE.search("        " + before)))
    )
    # An opening "The" or "Under" is no part of the name behind it.
    while is_opening and len(run) > 1 and fold(run[0][0]) in OPENING_WORDS:
        run, is_opening = run[1:], False
        while run and not _is_capitalised(run[0][0]):
            run = run[1:]
    if not run:
        return []
    start = run[0].start()
    phrase = text[start:end]
    for spelled, key in _SPELLED_OUT:
        phrase = spelled.sub(key.title(), phrase)
    tokens = []
    for match in _NAME_TOKEN.finditer(phrase):
        token = name_token(match[0])
        if token and _is_capitalised(match[0]):
            tokens.append(token)
    if not tokens:
        return []
    if len(tokens) == 1 and len(run) == 1 and is_opening and not _is_sure(run[0][0]):
        return [] if is_ordinary(tokens[0]) else [Name(start, end, tuple(tokens), True)]
    return [Name(start, end, tuple(tokens), is_opening and not _is_sure(run[0][0]))]


def capitalised_words(text: str) -> list[str]:
    """The capitalised words that a source must hold, in reading order.

    Function words are left out: they are capitalised for opening a sentence.
    """
    blanked = _blank(text, [*facts(text).dates, *(f for f in facts(text).figures if not f.is_word)])
    return [
        word
        for word in (match[0].rstrip(".") for match in _NAME_TOKEN.finditer(blanked))
        if _is_capitalised(word)
        and (fold(word) not in _FUNCTION_WORDS or (word.isupper() and len(word) > 1))
        and not _NUMBER_PHRASE.fullmatch(word)
    ]


def name_token(word: str) -> str:
    """The comparable form of one word of a name; "" for titles, labels and particles."""
    if word.rstrip(".") in _ACRONYMS:
        return _ACRONYMS[word.rstrip(".")]
    token = fold(word).removesuffix(".")
    if token in _PLACES:
        return _PLACES[token]
    if token in _TITLES or token in _LABELS or token in _PARTICLES or token == "i":
        return ""
    if len(token) > 3 and token.endswith("s") and token[:-1] in _PEOPLES:
        token = token[:-1]
    return _PEOPLES.get(token, token)


def _is_sure(word: str) -> bool:
    """Acronyms and CamelCase are names wherever they stand."""
    return len(word) > 1 and any(map(str.isupper, word[1:]))


def is_ordinary(token: str) -> bool:
    """True if a word (folded) that is capitalised for opening a sentence need be no name."""
    return (
        token in OPENING_WORDS
        or bool(_NUMBER_PHRASE.fullmatch(token))
        or bool(_COMMON_ENDING.search(token))
    )


# --- all together ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def facts(text: str) -> Facts:
    """All facts of a normalised text."""
    dates, rest = _dates(text)
    codes, rest = _codes(rest)
    figures: list[Figure] = []
    for figure in _figures(rest):
        if _is_year(rest, figure):
            dates.append(Date(figure.start, figure.end, year=int(figure.value)))
        else:
            figures.append(figure)
    note = _SCALE_NOTE.search(text)
    scale_note = _MAGNITUDES[note["scale"].lower()[:-1]] if note else 1
    return Facts(
        figures=tuple(figures),
        dates=tuple(sorted(dates, key=lambda date: date.start)),
        codes=tuple(sorted(codes, key=lambda code: code.start)),
        names=tuple(_names(_blank(text, [*dates, *codes, *(f for f in figures if not f.is_word)]))),
        scale_note=scale_note,
    )


def _is_year(text: str, figure: Figure) -> bool:
    written = text[figure.start : figure.end]
    is_plain = len(written) == 4 and written.isdecimal() and not figure.unit and not figure.noun
    return is_plain and not figure.marker and 1000 <= figure.value < 2200


def _blank(text: str, found: Iterable[Date | Code | Figure]) -> str:
    pieces, last = [], 0
    for fact in sorted(found, key=lambda fact: fact.start):
        pieces += [text[last : fact.start], " " * (fact.end - fact.start)]
        last = fact.end
    return "".join([*pieces, text[last:]]) if pieces else text
