"""Retrieval and reading side by side, and a router that chooses between them.

    python examples/rag_and_reading.py

Retrieval (BM25 over passages, then one model call) is cheap, and enough where
one place of the document holds the answer. It cannot know what it did not
retrieve, so "list all ..." and "how did ... change" need the whole document:
the memory agent reads it. A small LangGraph graph chooses by the question's
words, and reads as well where the retrieved passages do not hold the answer.

For two questions you see which way was taken and why, and what the other way
says. With the scripted model both ways miss nothing that they are shown, so the
difference is what they are shown.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import closing
from typing import Any, Literal

import bm25s
from _models import ADDRESS_1946, arguments, reader
from _printing import heading, paragraph
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from qwenlong_graph import create_memory_agent

LOCAL = "How many displaced persons now remain in the United States zone?"
GLOBAL = "List all that the President urges the Congress to do."
SENTENCES = {
    LOCAL: [
        "Of the total of 3,500,000 displaced persons found in the United States zone only 460,000 "
        "now remain."
    ],
    GLOBAL: [
        "I strongly urge that the Congress now resolve all doubts and as soon as possible adopt "
        "legislation continuing rent and price control in effect for a full year from June 30, "
        "1946.",
        "I, therefore, urge the Congress soon to extend the Second War Powers Act.",
        "Again I urge the Congress to enact legislation liberalizing unemployment compensation "
        "benefits and extending the coverage.",
        "I urge, too, that the Congress promptly accede to the wishes of the people of Hawaii that "
        "the Territory be admitted to statehood in our Union, and that similar action be taken "
        "with respect to Alaska as soon as it is certain that this is the desire of the people of "
        "that great Territory.",
        "I urge that the Congress complete, as promptly and as generously as may be possible, "
        "legislation which will aid economic rehabilitation for the Philippines.",
    ],
}
WHOLE_TEXT = r"\b(list|all|every|each|throughout|changed?|over time|compare|summari[sz]e)\b"
NOT_FOUND = "NOT FOUND"
PROMPT = ChatPromptTemplate.from_template(
    "Answer the question from these passages of a document. If they do not hold the answer, "
    f"reply with {NOT_FOUND} and nothing else.\n\nNotes:\n{{notes}}\n\nQuestion: {{question}}"
)


class Passages:
    """The four passages of a text that share most rare words with a question (BM25)."""

    def __init__(self, text: str) -> None:
        # 800 characters, and on to the end of the sentence.
        self.passages = re.findall(r"(?s)\S.{800,}?[.?!](?=\s)|\S.*\Z", text)
        self.index = bm25s.BM25()
        self.index.index(self.words(self.passages), show_progress=False)

    def __call__(self, question: str) -> str:
        ranked, _ = self.index.retrieve(self.words([question]), k=4, show_progress=False)
        return "\n\n".join(self.passages[place] for place in ranked[0])

    def words(self, texts: list[str]) -> Any:
        return bm25s.tokenize(texts, stopwords="en", show_progress=False)


class Asked(TypedDict, total=False):
    question: str
    why: str
    ways: list[str]
    answer: str
    cost: str


def main() -> None:
    args = arguments(__doc__).parse_args()
    with closing(reader(args.model, SENTENCES)) as model, tempfile.TemporaryDirectory() as folder:
        passages = Passages(ADDRESS_1946.read_text("utf-8"))
        notes = {"notes": RunnableLambda(passages), "question": RunnablePassthrough()}
        rag = notes | PROMPT | model.chat | StrOutputParser()
        memory_agent = create_memory_agent(model, document_dir=folder)

        def choose(state: Asked) -> Command[Literal["retrieval", "reading"]]:
            if word := re.search(WHOLE_TEXT, state["question"], re.IGNORECASE):
                why = f'"{word[0]}" asks for the whole document'
                return Command(goto="reading", update={"why": why})
            why = "no word of the question asks for more than one place"
            return Command(goto="retrieval", update={"why": why})

        def retrieval(state: Asked) -> Asked:
            answer = rag.invoke(state["question"])
            cost = f"4 of {len(passages.passages)} passages, model calls: 1"
            return {"answer": answer, "cost": cost, "ways": ["retrieval"]}

        def reading(state: Asked) -> Asked:
            out = memory_agent.invoke({"question": state["question"], "documents": [ADDRESS_1946]})
            usage, citations = out["usage"], len(out["citations"])
            cost = f"all {usage['steps']} chunks, model calls: {usage['calls']}"
            return {
                "answer": out["answer"],
                "cost": f"{cost}, citations: {citations}",
                "ways": [*state.get("ways", []), "reading"],
            }

        graph = StateGraph(Asked).add_node(choose).add_node(retrieval).add_node(reading)
        graph.add_edge(START, "choose").add_edge("reading", END)
        graph.add_conditional_edges(
            "retrieval", lambda state: "reading" if NOT_FOUND in state["answer"] else END
        )
        router = graph.compile()

        for question in (LOCAL, GLOBAL):
            heading(question)
            out = router.invoke({"question": question})
            print(f"Taken: {', then '.join(out['ways'])}, since {out['why']}.")
            print(f"It took {out['cost']}.\n")
            paragraph(out["answer"], bullet="- ")
            for name, way in {"retrieval": retrieval, "reading": reading}.items():
                if name not in out["ways"]:
                    other = way({"question": question})
                    print(f"\nBy {name} instead ({other['cost']}):\n")
                    paragraph(other["answer"], bullet="- ")


if __name__ == "__main__":
    main()
