"""A folder of 200 files; the answer puts together what stands in four of them.

    python examples/many_documents.py
    python examples/many_documents.py --files 40 --model embedded

Harbour masters wrote a page a day. Where a schooner was is told in a sentence
here and there, so the agent has to read all of it. Shown are the memory and the
prompts while it reads, which stay as small at the end as they were at the
beginning, and the answer with citations that name the files.

The embedded model copies facts one by one and does not combine them: expect
quotes, which need not be all of the four.
"""

from __future__ import annotations

import random
import tempfile
from contextlib import closing
from pathlib import Path

from _models import arguments, reader
from _printing import heading, paragraph, quotes

from qwenlong_graph import create_memory_agent

QUESTION = "Which harbours did the schooner Albatross enter and leave, and when?"
VOYAGE = [
    "On 3 May the schooner Albatross left Orrin with 40 barrels of whale oil.",
    "On 9 May the schooner Albatross entered Tarn to have her mast mended.",
    "On 14 May the schooner Albatross left Tarn for the south.",
    "On 21 May the schooner Albatross entered Vell with 38 barrels, two having burst on the way.",
]
CHATTER = [
    "The wind came from the {wind} and the sea was {sea}.",
    "{count} fishing boats went out before sunrise, and all of them came back.",
    "The price of salted cod was {count} crowns a barrel.",
    "The pilot complained of the fog at the {wind} mole.",
    "A brig with timber for the {wind} coast waited for the tide.",
    "The lamp of the lighthouse was cleaned, and its oil filled up to {count} pints.",
]


def write_logs(folder: Path, files: int) -> None:
    """Pages of the harbour masters' logs; the voyage is spread evenly over them."""
    chance = random.Random(1881)
    places = [files * (part + 1) // (len(VOYAGE) + 1) for part in range(len(VOYAGE))]
    for number in range(files):
        lines = [
            chance.choice(CHATTER).format(
                wind=chance.choice(["north", "south", "east", "west"]),
                sea=chance.choice(["calm", "rough", "grey", "high"]),
                count=chance.randrange(11, 90),
            )
            for _ in range(12)
        ]
        if number in places:
            lines.insert(6, VOYAGE[places.index(number)])
        (folder / f"page-{number + 1:03}.txt").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=200, help="how many files are written")
    args = parser.parse_args()
    if args.files <= len(VOYAGE):
        parser.error(f"--files: {len(VOYAGE) + 1} or more are needed to spread the voyage over.")

    with closing(reader(args.model, VOYAGE)) as model, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        write_logs(folder / "logs", args.files)
        agent = create_memory_agent(model, document_dir=folder / "store")

        heading("Asked")
        paragraph(QUESTION)
        heading("Reading, in tokens")
        print("  pages read   text so far   memory   longest prompt")
        text = longest = 0
        given = {"question": QUESTION, "documents": [folder / "logs"]}
        for mode, event in agent.stream(given, stream_mode=["custom", "values"]):
            if mode == "values":
                out = event
            elif event["type"] == "chunk_read":
                text += event["tokens"]
            elif event["type"] == "memory_updated":
                longest = max(longest, event["input_tokens"])
                pages = event["document_index"] + 1
                if pages % max(1, args.files // 10) == 0:
                    memory = event["memory_tokens"]
                    print(f"  {pages:10,}   {text:11,}   {memory:6,}   {longest:14,}")

    heading("The answer")
    paragraph(out["answer"])
    heading(f"Citations: {len(out['citations'])}, of {args.files} files")
    quotes(out["citations"])


if __name__ == "__main__":
    main()
