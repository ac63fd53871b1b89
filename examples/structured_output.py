"""The answer as an object: `response_format` takes a pydantic model.

    python examples/structured_output.py

Four figures are asked for, which a message of President Truman of 1946 gives in
two sentences. The answer is JSON in the form of a pydantic model, checked and,
if need be, asked for once more. Shown are the object, the quotes that it was
made from, and the figures that stand in no quote, if any.

The embedded model is too small for this. Given the two pages around these
sentences, it put 40 into all four fields. A quote shows that a figure stands in
the text, not that the model put it into the right field.
"""

from __future__ import annotations

import json
import re
import tempfile
from contextlib import closing

from _models import ADDRESS_1946, arguments, reader
from _printing import heading, paragraph, quotes
from langchain_core.messages import BaseMessage
from pydantic import BaseModel, Field

from qwenlong_graph import ConnectedModel, create_memory_agent
from qwenlong_graph.testing.oracle import OracleChatModel
from qwenlong_graph.testing.scripted import scripted

QUESTION = (
    "What minimum wage does the Fair Labor Standards Act prescribe, and to how many cents an hour "
    "is the statutory minimum to be raised?"
)
SENTENCES = [
    "At the present time the Fair Labor Standards Act prescribes a minimum wage of 40 cents an "
    "hour for those workers who are covered by the act.",
    "I am in full accord with the proposal now pending in the Congress that the statutory minimum "
    "be raised immediately to 65 cents an hour, with further increases to 70 cents after one year "
    "and to 75 cents after two years.",
]


class MinimumWage(BaseModel):
    """Cents an hour."""

    present: int = Field(description="the minimum wage at the present time")
    proposed: int = Field(description="what it is to be raised to immediately")
    after_one_year: int
    after_two_years: int


def scripted_reader() -> ConnectedModel:
    """Finds the sentences, and at the end puts the figures of its notes into the form."""
    reading = OracleChatModel(SENTENCES)

    def reply(messages: list[BaseMessage]) -> str:
        text = str(reading.replies(messages))
        cents = re.findall(r"(\d+) cents", text)
        if "<previous_memory>" in messages[-1].text or len(cents) != 4:
            return text
        return json.dumps(dict(zip(MinimumWage.model_fields, map(int, cents), strict=True)))

    return scripted(reply)


def main() -> None:
    args = arguments(__doc__).parse_args()
    connected = scripted_reader() if args.model == "scripted" else reader(args.model, [])
    with closing(connected) as model, tempfile.TemporaryDirectory() as folder:
        agent = create_memory_agent(model, document_dir=folder, response_format=MinimumWage)
        out = agent.invoke({"question": QUESTION, "documents": [ADDRESS_1946]})

    heading("Asked")
    paragraph(QUESTION)
    heading("The answer, as the model gave it")
    paragraph(out["answer"])
    heading("The answer, as a MinimumWage")
    if out["structured_response"] is None:
        paragraph("None: the documents do not say it, or the model did not find it.")
    else:
        wage = MinimumWage.model_validate(out["structured_response"])
        for name, value in wage:
            print(f"  {name:16} {value:4} cents an hour")
        print(f"  raised by {wage.after_two_years / wage.present - 1:.0%} within two years")
    heading("Made from")
    quotes(out["citations"])
    heading("Figures that stand in none of these quotes")
    paragraph("\n".join(claim["text"] for claim in out["unsupported"]) or "none")


if __name__ == "__main__":
    main()
