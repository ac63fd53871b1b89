"""How often the repetition detector takes an honest text for a loop, and how soon it sees a loop.

Run: python benchmarks/repetition.py [--tokenizer FILE] [--json FILE]

Honest texts are whole documents (addresses to Congress, the standard library's sources) and
generated tables, lists, boilerplate, logs and replies with drafts, as a model may copy them. Loops
begin after 300 words of prose, as a model's do. Words are words or marks; `--tokenizer` (a
`tokenizer.json`) adds the delay in tokens of that tokenizer.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import re
import statistics
import sysconfig
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from qwenlong_graph.models.calls import ask
from qwenlong_graph.models.connect import connect
from qwenlong_graph.reading import repetition
from qwenlong_graph.reading.repetition import UNIT, RepetitionDetector
from qwenlong_graph.types import Message

HERE = Path(__file__).parent
ADDRESSES = HERE / "data" / "addresses"
EXAMPLE = HERE.parent / "examples" / "data" / "state-of-the-union-1946.txt"

GENERATED = 40
"""Texts of each generated kind."""
TEXT_WORDS = 6_000
"""Words of a generated text, about a memory of 15,000 tokens where it holds many figures."""
LOOP_WORDS = 12_000
"""A loop that is not seen within this many words is missed."""
PIECE_CHARS = 4
"""About a token."""

Make = Callable[[random.Random], Iterable[str]]

NAMES = "Hale Orrin Quaid Brandt Osei Lindqvist Marsh Tanaka Ferreira Dunn Abiola Kovacs".split()
TOWNS = "Harborview Stonefield Millbrook Eastgate Norwick Larkhill Pinewater Ashdown".split()
GOODS = "Barley Copper Timber Wool Salt Lamp oil Rope Canvas Iron ore Glass".split()
CLAUSES = [
    "The {party} shall indemnify and hold harmless the {other} from and against any and all claims,"
    " losses and expenses arising out of or in connection with Section {n}.",
    "Notwithstanding anything to the contrary herein, the obligations of the {party} under Section"
    " {n} shall survive the expiration or earlier termination of this Agreement.",
    "The {party} shall deliver written notice to the {other} not later than {days} days after the"
    " occurrence of any event described in Section {n}.",
    "Whereas the {party} has agreed to lease to the {other} the premises described in Schedule {n},"
    " upon the terms and subject to the conditions set forth herein;",
    "All sums due to the {other} under this Section shall bear interest at a rate of {rate} percent"
    " per annum from the due date until the date of payment in full.",
    "No failure or delay by the {party} in exercising any right under this Agreement shall operate"
    " as a waiver thereof, nor shall any single or partial exercise thereof preclude any other.",
    "If any provision of Section {n} is held invalid or unenforceable, the remaining provisions"
    " shall remain in full force and effect.",
    "The {party} may assign its rights under Section {n} only with the prior written consent of the"
    " {other}, which consent shall not be unreasonably withheld, conditioned or delayed.",
    "This Section {n} shall be governed by and construed in accordance with the laws of {town}.",
    "The {other} represents and warrants to the {party} that it is duly organised, validly existing"
    " and in good standing under the laws of {town}.",
]
EVENTS = [
    "INFO  worker-{w} picked up job {job}",
    "INFO  worker-{w} finished job {job} in {ms} ms",
    "DEBUG cache hit for key {key}",
    "DEBUG cache miss for key {key}, fetching from origin",
    "WARN  retrying request {job} after {ms} ms",
    "INFO  GET /api/v1/items/{job} 200 {ms}",
]


# --- honest texts --------------------------------------------------------------------------------


def addresses() -> Iterator[str]:
    yield EXAMPLE.read_text(encoding="utf-8")
    for path in sorted(ADDRESSES.glob("*.txt.gz")):
        yield gzip.decompress(path.read_bytes()).decode("utf-8")


def sources(*, tests: bool = False) -> Iterator[str]:
    """The standard library without its tests, or every second file of those, where installed."""
    root = Path(sysconfig.get_paths()["stdlib"])
    apart = {"test", "tests", "site-packages", "idle_test"}
    if tests:
        paths = sorted((root / "test").rglob("*.py"))[::2]
    else:
        found = sorted(root.rglob("*.py"))
        paths = [path for path in found if apart.isdisjoint(path.relative_to(root).parts)]
    for path in paths:
        yield path.read_text(encoding="utf-8", errors="replace")


def figures(rng: random.Random) -> Iterator[str]:
    """A CSV file of monthly figures."""
    yield "town,goods,year,month,quantity,value\n"
    for month in itertools.count(rng.randint(1880, 1990) * 12):
        for town in rng.sample(TOWNS, 4):
            value = rng.randint(100, 99_999)
            yield f"{town},{rng.choice(GOODS)},{month // 12},{month % 12 + 1},"
            yield f"{value // 7},{value / 100}\n"


def sparse(rng: random.Random) -> Iterator[str]:
    """A Markdown table in which most cells are 0 or n/a."""
    yield "| town | " + " | ".join(f"q{n}" for n in range(1, 9)) + " |\n|" + "---|" * 9 + "\n"
    empty = rng.choice(["0", "n/a", "-"])
    share = rng.uniform(0.5, 0.85)
    while True:
        cells = [empty if rng.random() < share else str(rng.randint(1, 999)) for _ in range(8)]
        yield f"| {rng.choice(TOWNS)} {rng.choice(NAMES)} | " + " | ".join(cells) + " |\n"


def ledger(rng: random.Random) -> Iterator[str]:
    """A Markdown table of payments with few different parties."""
    yield "| date | from | to | amount | paid |\n|---|---|---|---:|---|\n"
    day = 0
    while True:
        day += rng.randint(0, 3)
        payer, payee = rng.sample(NAMES, 2)
        amount = rng.choice([25, 50, 100, 250]) * rng.randint(1, 12)
        paid = rng.choice(["yes", "yes", "yes", "no"])
        yield f"| {1871 + day // 365}-{day % 365 // 31 + 1:02}-{day % 31 + 1:02} "
        yield f"| {payer} & Co. | {payee} & Sons | {amount:,}.00 | {paid} |\n"


def register(rng: random.Random) -> Iterator[str]:
    """A table of people with columns that hold yes or no."""
    yield "Name;Town;Resident;Voter;Owner;Tenant\n"
    while True:
        answers = ";".join(rng.choice(["yes", "no"]) for _ in range(4))
        yield f"{rng.choice(NAMES)}, {rng.choice('ABCDEFGHJKLMNPRST')}.;{rng.choice(TOWNS)};"
        yield answers + "\n"


def timetable(rng: random.Random) -> Iterator[str]:
    """Departures, at regular and less regular intervals."""
    for line in itertools.count(1):
        yield f"\nLine {line}, {' - '.join(rng.sample(TOWNS, 3))}\n"
        minute = rng.randint(300, 360)
        step = rng.choice([7, 10, 12, 15, 20])
        while minute < 1380:
            minute += step if rng.random() < 0.8 else step + rng.randint(-4, 9)
            yield f"{minute // 60:02}:{minute % 60:02}  "


def index(rng: random.Random) -> Iterator[str]:
    """The index of a book."""
    words = sorted({word.lower() for word in re.findall(r"[A-Za-z]{6,}", next(addresses()))})
    while True:
        start = rng.randrange(len(words) // 2)
        for word in words[start::3]:
            pages = sorted(rng.sample(range(1, 600), rng.randint(1, 6)))
            yield f"{word}, {', '.join(map(str, pages))}\n"


def attendance(rng: random.Random) -> Iterator[str]:
    """Minutes that always take the same form."""
    for meeting in itertools.count(1):
        yield f"\nMeeting {meeting}. Present: {', '.join(rng.sample(NAMES, 6))}. Apologies: none.\n"
        yield "The minutes of the last meeting were read and approved.\n"
        for _ in range(rng.randint(2, 5)):
            mover, seconder = rng.sample(NAMES, 2)
            yield f"Moved by {mover}, seconded by {seconder}, that {rng.choice(GOODS).lower()} be "
            yield f"bought for the {rng.choice(TOWNS)} works. Carried unanimously.\n"


def contract(rng: random.Random) -> Iterator[str]:
    """Clauses of few forms, with their numbers, sums and parties."""
    party, other = rng.sample(["Lessor", "Lessee", "Company", "Contractor", "Guarantor"], 2)
    for number in itertools.count(1):
        clause = rng.choice(CLAUSES).format(
            party=party,
            other=other,
            n=f"{rng.randint(1, 40)}.{rng.randint(1, 9)}",
            days=rng.choice([10, 14, 30, 60, 90]),
            rate=rng.choice([4, 5, 6, 8]),
            town=rng.choice(TOWNS),
        )
        yield f"{number}. {clause}\n"


def log(rng: random.Random) -> Iterator[str]:
    """A server's log."""
    second = 0
    while True:
        second += rng.randint(0, 2)
        clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        event = rng.choice(EVENTS).format(
            w=rng.randint(1, 4),
            job=rng.randint(1, 9_999),
            ms=rng.randint(1, 900),
            key=f"{rng.getrandbits(32):08x}",
        )
        yield f"2026-03-01 {clock} {event}\n"


def records(rng: random.Random) -> Iterator[str]:
    """JSON records that differ in a few values."""
    for number in itertools.count(rng.randint(1, 500)):
        record = {
            "id": number,
            "town": rng.choice(TOWNS),
            "status": rng.choice(["open", "closed"]),
            "tags": rng.sample(["urgent", "legal", "finance"], rng.randint(0, 2)),
            "amount": rng.randint(10, 5_000),
        }
        yield json.dumps(record, indent=2) + ",\n"


def drafts(rng: random.Random) -> Iterator[str]:
    """Thoughts that draft a memory twice, and the reply that copies it out."""
    sentences = re.findall(r"[A-Z][^.;\n]{40,160}[.;]", rng.choice(list(addresses())))
    start = rng.randrange(len(sentences) // 2)
    notes = sentences[start : start + 60]
    draft = "\n".join(f"- {note}" for note in notes)
    revised = "\n".join(f"- {note}" for note in notes if rng.random() > 0.1)
    yield f"<think>Let me draft the memory:\n{draft}\nI can leave some out:\n{revised}\n</think>\n"
    yield f"<memory>\n{revised}\n</memory>\n<plan>\nLook for figures.\n</plan>\n"


HONEST: dict[str, Make] = {
    "figures (CSV)": figures,
    "sparse table": sparse,
    "ledger": ledger,
    "yes/no register": register,
    "timetable": timetable,
    "book index": index,
    "minutes": attendance,
    "contract": contract,
    "log": log,
    "JSON records": records,
    "thoughts with drafts": drafts,
}


# --- loops ---------------------------------------------------------------------------------------


def prose(rng: random.Random, words: int) -> str:
    """A stretch of an address."""
    text = rng.choice(list(addresses()))
    starts = [match.start() for match in re.finditer(r"(?<=\. )[A-Z]", text)]
    stretch = text[rng.choice(starts[: len(starts) // 2]) :]
    ends = [match.end() for match in itertools.islice(UNIT.finditer(stretch), words)]
    return stretch[: ends[-1]] + " "


def repeated(words: int) -> Make:
    """The same stretch of that many words, again and again."""
    return lambda rng: itertools.repeat(prose(rng, words))


def alternating(rng: random.Random) -> Iterator[str]:
    return itertools.cycle([f"Wait, but {prose(rng, 14)}", f"Alternatively, {prose(rng, 18)}"])


def shuffled(rng: random.Random) -> Iterator[str]:
    """A few sentences in ever changing order."""
    sentences = [prose(rng, rng.randint(10, 25)) for _ in range(6)]
    while True:
        yield rng.choice(sentences)


def growing(rng: random.Random) -> Iterator[str]:
    """A list told again and again, with one entry more each time."""
    entries = [prose(rng, 6) for _ in range(200)]
    for size in itertools.count(1):
        yield "So the list is: " + ", ".join(entries[: size % 200 or 1]) + ". "


def numbered(rng: random.Random) -> Iterator[str]:
    """A numbered list of one entry, which has a figure of its own."""
    entry = f"{prose(rng, 7)}in {rng.randint(1, 2_000)}"
    return (f"{number}. {entry}\n" for number in itertools.count(1))


def one_row(rng: random.Random) -> Iterator[str]:
    """A JSON record with a rising number."""
    town = rng.choice(TOWNS)
    return (
        f'{{"id": {number}, "town": "{town}", "open": true}},\n' for number in itertools.count()
    )


def one_slot(rng: random.Random) -> Iterator[str]:
    """A sentence of about 30 words in which one name changes."""
    sentence = prose(rng, 30)
    while True:
        yield f"Let me check {rng.choice(NAMES)} {rng.randint(1, 99)}: {sentence}"


LOOPS: dict[str, Make] = {
    "one word": lambda rng: itertools.repeat("the "),
    "one mark, no spaces": lambda rng: itertools.repeat("!"),
    "one Chinese phrase": lambda rng: itertools.repeat("让我再检查一下这个数字，"),
    "phrase of 8": repeated(8),
    "sentence of 25": repeated(25),
    "paragraph of 120": repeated(120),
    "passage of 600": repeated(600),
    "thoughts of 2,000": repeated(2_000),
    "two sentences in turn": alternating,
    "six sentences, shuffled": shuffled,
    "growing list": growing,
    "numbered list of one entry": numbered,
    "one record, rising number": one_row,
    "sentence with a changing name": one_slot,
}


# --- measuring -----------------------------------------------------------------------------------


def cut(parts: Iterable[str], words: int) -> str:
    """The beginning of a text of that many words, in whole parts."""
    taken: list[str] = []
    for part in parts:
        words -= len(UNIT.findall(part))
        taken.append(part)
        if words <= 0:
            break
    return "".join(taken)


def peak_share(text: str) -> float:
    """The largest share of repeated n-grams anywhere in a text."""
    detector = RepetitionDetector(threshold=2)
    most = 0.0
    for start in range(0, len(text), 200):
        detector.feed(text[start : start + 200])
        most = max(most, detector.share)
    return most


def honest_rows() -> Iterator[dict[str, Any]]:
    kinds: dict[str, Iterable[str]] = {
        "addresses": addresses(),
        "Python sources": sources(),
        "Python tests (held out)": sources(tests=True),
    }
    for name, make in HONEST.items():
        rngs = [random.Random(f"{name} {number}") for number in range(GENERATED)]
        kinds[name] = [cut(make(rng), TEXT_WORDS) for rng in rngs]
    for name, texts in kinds.items():
        shares, words, alarms = [], 0, 0
        for text in texts:
            words += len(UNIT.findall(text))
            shares.append(peak_share(text))
            alarms += shares[-1] >= repetition.THRESHOLD
        if not shares:
            continue
        yield {
            "kind": name,
            "texts": len(shares),
            "words": words,
            "alarms": alarms,
            "median_share": statistics.median(shares),
            "largest_share": max(shares),
        }


def delay_of(opening: str, parts: Iterable[str]) -> str | None:
    """What had been written of a loop when it was seen, None where it was not."""
    detector = RepetitionDetector()
    if detector.feed(opening):
        raise AssertionError("the opening is taken for a loop")
    loop = cut(parts, LOOP_WORDS)
    for start in range(0, len(loop), PIECE_CHARS):
        if detector.feed(loop[start : start + PIECE_CHARS]):
            return loop[: start + PIECE_CHARS]
    return None


def loop_rows(count: Callable[[str], int] | None) -> Iterator[dict[str, Any]]:
    for name, make in LOOPS.items():
        words, tokens = [], []
        for number in range(GENERATED):
            rng = random.Random(f"{name} {number}")
            seen = delay_of(prose(rng, 300), make(rng))
            if seen is not None:
                words.append(len(UNIT.findall(seen)))
                tokens += [count(seen)] if count else []
        yield {
            "kind": name,
            "loops": GENERATED,
            "seen": len(words),
            "median_words": statistics.median(words) if words else None,
            "largest_words": max(words, default=None),
            "median_tokens": statistics.median(tokens) if tokens else None,
            "largest_tokens": max(tokens, default=None),
        }


class Pieces(BaseChatModel):
    """Streams pieces that lie ready, a token each."""

    pieces: list[str]

    @property
    def _llm_type(self) -> str:
        return "pieces"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for piece in self.pieces:
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))


def per_piece(run: Callable[[], object], pieces: int) -> float:
    """Microseconds of processor time for a piece, the least of three runs."""
    times = []
    for _ in range(3):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return min(times) / pieces * 1e6


def cost() -> dict[str, float]:
    """Microseconds for a piece of about a token, and MiB held after many of them."""
    text = "".join(addresses())
    pieces = [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]
    chat = Pieces(pieces=pieces[:50_000])
    model = connect(chat, window=200_000, count_tokens=len)

    def detect() -> None:
        detector = RepetitionDetector()
        for piece in pieces:
            detector.feed(piece)

    def read() -> None:
        for _ in chat.stream("Hi"):
            pass

    tracemalloc.start()
    detector = RepetitionDetector()
    for piece in pieces[:50_000]:
        detector.feed(piece)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    asking: list[Message] = [{"role": "user", "content": "Hi"}]
    return {
        "detector_us": per_piece(detect, len(pieces)),
        "stream_us": per_piece(read, 50_000),
        "ask_us": per_piece(lambda: ask(model, asking, max_tokens=60_000), 50_000),
        "mib": held / 2**20,
    }


def counter(path: Path | None) -> Callable[[str], int] | None:
    if path is None:
        return None
    from tokenizers import Tokenizer  # type: ignore[import-untyped]

    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the measures here")
    arguments = parser.parse_args()
    print(
        f"n-grams of {repetition.GRAM} words, seen {repetition.TIMES} times before among "
        f"{repetition.MEMORY:,}; a loop where {repetition.THRESHOLD:.0%} of the last "
        f"{repetition.SPAN} are such"
    )
    print(
        f"\n{'honest texts':<32}{'texts':>6}{'words':>11}{'alarms':>8}{'median':>9}{'largest':>9}"
    )
    honest = []
    for row in honest_rows():
        honest.append(row)
        print(
            f"{row['kind']:<32}{row['texts']:>6}{row['words']:>11,}{row['alarms']:>8}"
            f"{row['median_share']:>9.1%}{row['largest_share']:>9.1%}"
        )
    print(f"\n{'loops':<32}{'loops':>6}{'seen':>6}{'words':>9}{'most':>9}{'tokens':>9}{'most':>9}")
    loops = []
    for row in loop_rows(counter(arguments.tokenizer)):
        loops.append(row)
        cells = ("median_words", "largest_words", "median_tokens", "largest_tokens")
        delays = "".join(
            f"{'-' if row[cell] is None else format(row[cell], ',.0f'):>9}" for cell in cells
        )
        print(f"{row['kind']:<32}{row['loops']:>6}{row['seen']:>6}{delays}")
    spent = cost()
    print(
        f"\na piece of {PIECE_CHARS} characters takes {spent['detector_us']:.2f} us in the detector"
        f" (which holds {spent['mib']:.1f} MiB);\nto read it from LangChain's stream takes "
        f"{spent['stream_us']:.1f} us, and through ask, all included, {spent['ask_us']:.1f} us"
    )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"honest": honest, "loops": loops, "cost": spent}, indent=2),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
