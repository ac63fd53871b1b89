"""Where the protocols draw a line: what a doubtful reply may not do."""

from __future__ import annotations

import pytest

from qwenlong_graph.reading.loop import Reply, decompose_steps, drive, start_state
from qwenlong_graph.reading.protocols import ExtractProtocol, RewriteProtocol
from qwenlong_graph.reading.replies import BadReply
from tests.reading.test_loop import answering, script
from tests.reading.test_protocols import QUESTION, chunk, cited, count, extract, task

FACT = "The bridge at Orrin was paid for by the widow Hale."
WINTER = "The winter was long."


def rewritten(text: str, *, memory: str = "", **options):
    state = {**start_state(), "memory": memory}
    limits = {name: options.pop(name) for name in ("memory_tokens",) if name in options}
    return RewriteProtocol().apply_reply(
        task(**limits), state, chunk(), text, is_last_attempt=True, **options
    )


def test_a_text_without_elements_is_appended_only_if_it_was_not_cut():
    whole = rewritten(FACT, memory="- an old fact")
    assert (whole.kind, whole.state["memory"]) == ("appended", f"- an old fact\n- {FACT}")
    with pytest.raises(BadReply):
        rewritten(FACT, memory="- an old fact", is_truncated=True)


def test_only_lines_that_the_chunk_bears_out_are_appended():
    update = rewritten(f"{FACT}\nKing Ludo paid 999,000 crowns.", memory="- an old fact")
    assert update.state["memory"] == f"- an old fact\n- {FACT}"
    with pytest.raises(BadReply):
        rewritten("I am sorry, I cannot help with that.", memory="- an old fact")


def test_what_would_lift_the_memory_over_its_limit_is_not_appended():
    old = "- an old fact"
    size = count(f"{old}\n- {FACT}")
    assert rewritten(FACT, memory=old, memory_tokens=size).kind == "appended"
    with pytest.raises(BadReply):
        rewritten(FACT, memory=old, memory_tokens=size - 1)


@pytest.mark.parametrize("spare", [0, 1])
def test_the_limit_of_the_memory_holds_to_the_token(spare):
    memory = f"- {FACT}\n- {WINTER}"
    limit = count(memory) - 1 + spare
    update = rewritten(f"<memory>{memory}</memory><plan>x</plan>", memory_tokens=limit)
    assert update.kind == ("complete" if spare else "trimmed")
    assert count(update.state["memory"]) <= limit


def test_an_over_long_plan_is_cut_at_a_line():
    plan = "\n".join(f"look for fact number {n}" for n in range(9))
    update = rewritten(f"<memory>- {FACT}</memory><plan>{plan}</plan>")
    kept = update.state["plan"]
    assert kept
    assert count(kept) <= task().budget.plan_tokens
    assert plan.startswith(kept + "\n")


# The protocol "extract".

TOLL = "For a week the bridge was paid no heed."


def test_a_line_whose_words_became_common_leaves_the_memory():
    of = chunk(f"{WINTER} {TOLL} Traders came from the coast every spring.", start=0, step=0)
    first = extract(TOLL, of=of).state
    assert first["memory"] == f"- {TOLL}"
    common = " ".join(f"A bridge of {n} arches was paid for in the hills." for n in range(60))
    after = extract("I do not know.", state=first, of=chunk(common, start=500, step=1)).state
    assert TOLL not in after["memory"]
    assert not any(piece["start_char"] < 500 for piece in after["evidence"])


def test_a_weak_line_stays_in_memory_and_out_of_the_answer():
    of = chunk(f"{FACT} {TOLL} {WINTER}", start=0, step=0)
    state = extract(f"{FACT} {TOLL}", of=of).state
    assert state["memory"] == f"- {FACT}\n- {TOLL}"
    protocol = ExtractProtocol()
    assert protocol.best_notes(task(), state) == [FACT]
    prompt = str(protocol.answer_messages(task(), state))
    assert FACT in prompt
    assert TOLL not in prompt


def test_only_what_follows_the_thoughts_points():
    text = "The mill at Quaid stood idle. The boat of Captain Duarte sank near Lisbon. " + WINTER
    first, second = text.split(". ")[0] + ".", text.split(". ")[1] + "."
    question = "When was Duarte seen idle in Lisbon, and where was Quaid's ferry?"
    both = extract(f"{first} {second}", of=chunk(text), core_question=question)
    assert both.state["memory"] == f"- {first}\n- {second}", "each is relevant when pointed to"
    thoughtful = f"<think>\n{first}\n</think>\n{second}"
    update = extract(thoughtful, of=chunk(text), core_question=question)
    assert update.state["memory"] == f"- {second}"
    assert cited(update.state["evidence"], text) == [second]


def test_only_the_first_sentences_of_a_reply_point():
    owners = ["Abel", "Brandt", "Corvin", "Duarte", "Edgar", "Fenwick"]
    things = ["mill", "honey", "abbey"] * 2
    sentences = [
        f"Then {owner} owned the {thing}." for owner, thing in zip(owners, things, strict=True)
    ]
    question = "Whose were the mill, the honey, the abbey?"
    reply = " ".join(sentences)
    update = extract(reply, of=chunk(reply), core_question=question, memory_tokens=200)
    assert update.state["memory"].splitlines() == [f"- {sentence}" for sentence in sentences[:4]]
    assert extract("None.", of=chunk(reply), core_question=question).state["memory"] == ""


NOT_ANSWERS = ["NOT FOUND", "Not found.", QUESTION, "The bridge at Orrin was paid for."]


@pytest.mark.parametrize("text", NOT_ANSWERS)
def test_extract_quotes_where_the_reply_says_nothing_of_the_notes(text):
    answer, _ = answering(text, protocol=ExtractProtocol())
    assert (answer.text, answer.is_quoted) == (FACT, True)


def test_extract_quotes_where_not_found_is_a_word_of_the_notes():
    note = "The money for the bridge at Orrin was found by the widow Hale."
    answer, _ = answering(
        "NOT FOUND", protocol=ExtractProtocol(), memory=f"- {note}", quotes=(note,)
    )
    assert (answer.text, answer.is_quoted) == (note, True)


@pytest.mark.parametrize("replies", [["<think>"] * 3, [""] * 3])
def test_extract_quotes_where_the_answer_never_comes(replies):
    answer, ask = answering(*replies, protocol=ExtractProtocol())
    assert (answer.text, answer.is_quoted) == (FACT, True)
    assert len(ask.requests) == 3


@pytest.mark.parametrize("text", ["NOT FOUND", QUESTION])
def test_rewrite_leaves_the_answer_to_the_model(text):
    answer, _ = answering(text, protocol=RewriteProtocol())
    assert (answer.text, answer.is_quoted) == (text, False)


QUERY = "What is the toll of the bridge at Orrin? Answer in one word."
PARTS = ("What is the toll of the bridge at Orrin?", "Answer in one word.")
SPLIT = f"<core_question>{PARTS[0]}</core_question><instructions>{PARTS[1]}</instructions>"


def test_a_split_that_was_cut_leaves_the_question_whole():
    assert drive(decompose_steps(QUERY, task=task()), script(Reply(SPLIT))) == PARTS
    cut = Reply(SPLIT, is_truncated=True)
    assert drive(decompose_steps(QUERY, task=task()), script(cut)) == (QUERY, "")


@pytest.mark.parametrize(
    "core",
    [
        "What is the toll of the bridge?",  # loses a name
        "What is the toll of the bridge at Orrin in Norway?",  # adds one
        "",
    ],
)
def test_a_split_that_changes_the_question_leaves_it_whole(core):
    text = f"<core_question>{core}</core_question><instructions>{PARTS[1]}</instructions>"
    assert drive(decompose_steps(QUERY, task=task()), script(text)) == (QUERY, "")


SEVERAL = "What did each of the four ferrymen give to the widow's roof?"
GIFTS = (
    "The ferryman of Alder gave nine crowns to the widow's roof.",
    "The ferryman of Cedar gave a cow to the widow's roof.",
    "The ferryman of Dale gave thirty slates to the widow's roof.",
)


def test_extract_quotes_every_note_where_several_are_asked_for():
    memory = "\n".join(f"- {gift}" for gift in GIFTS)
    mixed = "The ferryman of Alder gave a cow and the one of Dale nine crowns."
    asked = {"protocol": ExtractProtocol(), "memory": memory, "quotes": GIFTS}
    answer, ask = answering(mixed, core_question=SEVERAL, **asked)
    assert (answer.text, answer.is_quoted) == ("\n".join(GIFTS), True)
    assert not ask.requests, "a small model mixes them"
    one = "What did the ferryman of Cedar give to the widow's roof?"
    answer, ask = answering(GIFTS[1], core_question=one, **asked)
    assert (answer.text, answer.is_quoted) == (GIFTS[1], False)
    assert len(ask.requests) == 1
