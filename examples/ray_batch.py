"""Many questions on many machines: rows of a Ray Data set, read by workers.

    python examples/ray_batch.py
    python examples/ray_batch.py --model http://127.0.0.1:8080 --workers 8 \\
        --folder readings

Each row is read as a thread of its own, whose steps are kept in --folder, and
its result is one file there, written whole. So a row whose worker was killed,
and which Ray gives to another, goes on with the chunk that was open; one that
was finished is not read again; and a row has one result, however often it was
given out. The same command with the same --folder does what is missing.

Workers are processes of Ray, each with a connection of its own and one question
at a time: take as many as the server takes requests. On a cluster (--address
auto) the folder has to be on a disk that all machines share. SQLite is not made
for such disks: keep the threads in PostgreSQL there (docs/production.md).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from _models import ADDRESS_1946, arguments, reader
from _printing import heading, paragraph
from langgraph.checkpoint.sqlite import SqliteSaver

from qwenlong_graph import ConnectedModel, ReadingSettings, create_memory_agent
from qwenlong_graph.errors import QwenLongGraphError
from qwenlong_graph.runs.writing import write_whole

SENTENCES = {
    "What minimum wage does the Fair Labor Standards Act prescribe?": [
        "At the present time the Fair Labor Standards Act prescribes a minimum wage of 40 cents an "
        "hour for those workers who are covered by the act."
    ],
    "How many displaced persons remain in the United States zone?": [
        "Of the total of 3,500,000 displaced persons found in the United States zone only 460,000 "
        "now remain."
    ],
    "How many has the Navy discharged?": [
        "The Navy, including the Marine Corps and the Coast Guard, has discharged over one and a "
        "half million."
    ],
    "What share of business transactions do small businesses handle?": [
        "Between 30 and 40 percent of the total value of all business transactions are handled by "
        "small business."
    ],
    "How much has been spent on war in the first six months?": [
        "During the first 6 months 32.9 billion dollars were spent."
    ],
    "How large is the subscription to the Bank?": [
        "The subscription to the Bank amounts to 3,175 million dollars."
    ],
}


class RowReader:
    """Answers rows, one after another, in a worker process."""

    def __init__(self, model: str, folder: str) -> None:
        self.name = model
        # Connected with the first row: a worker that fails here is started over and over by Ray.
        self.model: ConnectedModel | None = None
        self.folder = Path(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """What became of a row. One that failed is told, and costs the others nothing."""
        path = self.folder / f"{row['id']}.json"
        told = {"id": row["id"], "worker": os.getpid(), "how": "kept", "error": ""}
        if not path.exists():
            try:
                out, told["how"] = self.read(row)
            except (QwenLongGraphError, SystemExit) as error:  # `reader` says it by SystemExit
                return {**told, "how": "failed", "error": str(error)}
            write_whole(path, json.dumps({**row, **out}).encode())
        return told

    def read(self, row: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The agent's output, from where the row's thread stands."""
        if self.model is None:
            self.model = reader(self.name, SENTENCES)
        config: Any = {"configurable": {"thread_id": row["id"]}}
        with SqliteSaver.from_conn_string(str(self.folder / f"{row['id']}.sqlite")) as saver:
            agent = create_memory_agent(
                self.model,
                settings=ReadingSettings(strategy="memory"),
                checkpointer=saver,
                document_dir=self.folder / "documents",
            )
            is_begun = bool(agent.get_state(config).values)
            given: Any = {"question": row["question"], "documents": [row["document"]]}
            out = agent.invoke(None if is_begun else given, config, durability="sync")
        return out, "resumed" if is_begun else "read"


def start_ray(address: str, workers: int, temporary: str) -> None:
    """Ray on this machine's loopback address and out of sight, or the cluster at an address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        # Ray looks at them when it is imported. Without the first it listens on every address.
        os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
        options |= {"num_cpus": workers, "object_store_memory": 100 << 20}
        options |= {"_temp_dir": temporary, "include_dashboard": False}
    import ray.data

    ray.init(address, **options)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--workers", type=int, default=2, help="questions at once")
    parser.add_argument("--address", default="local", help='of a Ray cluster; "local" starts one')
    parser.add_argument(
        "--folder", type=Path, help="where readings are kept; by default a temporary one"
    )
    args = parser.parse_args()
    if args.workers < 1:
        parser.error("--workers: 1 or more are needed.")
    reader(args.model, SENTENCES).close()  # tells what is wrong with --model before Ray starts
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:
        folder = (args.folder or Path(temporary) / "readings").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {"id": f"row-{number}", "question": question, "document": str(ADDRESS_1946)}
            for number, question in enumerate(SENTENCES)
        ]
        start_ray(args.address, args.workers, temporary)
        import ray.data

        try:
            # A block is what Ray gives out, and gives out again: one row each.
            answered = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                RowReader,
                fn_constructor_args=[args.model, str(folder)],
                compute=ray.data.ActorPoolStrategy(size=args.workers),
            )
            failed = 0
            for told in answered.iter_rows():
                said = f"{told['id']}: {told['how']} by worker {told['worker']} {told['error']}"
                print(said.rstrip())
                failed += told["how"] == "failed"
        finally:
            ray.shutdown()
        for path in sorted(folder.glob("row-*.json")):
            result = json.loads(path.read_bytes())
            heading(result["question"])
            paragraph(result["answer"])
    if failed:
        sys.exit(f"\n{failed} of {len(rows)} rows failed; the same command tries them again.")


if __name__ == "__main__":
    main()
