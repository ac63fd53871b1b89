"""How often `unsupported_claims` raises a false alarm, and how often it finds a wrong claim.

Run: python benchmarks/unsupported.py [--json FILE] [--show]

The pairs in `data/unsupported.json` were written before the code, half of them (`held_out`) not
looked at while it was tuned. A true answer says nothing beyond its evidence, though in other
words; each alarm on one is false. A false answer holds one wrong figure, date, unit or name
(`wrong`); it is detected if an unsupported claim overlaps that place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwenlong_graph.reading.claims import count_claims, unsupported_claims

PAIRS = Path(__file__).with_name("data") / "unsupported.json"
SPLITS = ("tune", "held_out")


def measure(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and rates over the pairs, with the ids of those judged wrongly."""
    alarmed, missed = [], []
    claims = alarms = computed = true_answers = false_answers = 0
    for pair in pairs:
        answer = pair["answer"]
        found = unsupported_claims(answer, pair["evidence"])
        unsupported = [claim for claim in found if claim["status"] == "unsupported"]
        if pair["is_true"]:
            true_answers += 1
            claims += count_claims(answer)
            alarms += len(unsupported)
            computed += len(found) - len(unsupported)
            if unsupported:
                alarmed.append(pair["id"])
            continue
        false_answers += 1
        start = answer.index(pair["wrong"])
        end = start + len(pair["wrong"])
        if not any(c["start_index"] < end and start < c["end_index"] for c in unsupported):
            missed.append(pair["id"])
    return {
        "true_answers": true_answers,
        "claims": claims,
        "alarms": alarms,
        "computed": computed,
        "answers_with_alarm": len(alarmed) / true_answers,
        "claims_with_alarm": alarms / claims,
        "false_answers": false_answers,
        "detected": 1 - len(missed) / false_answers,
        "alarmed_ids": alarmed,
        "missed_ids": missed,
    }


def measure_all() -> dict[str, dict[str, Any]]:
    """The measures of each split and of all committed pairs."""
    pairs = json.loads(PAIRS.read_text(encoding="utf-8"))
    splits = {name: [pair for pair in pairs if pair["split"] == name] for name in SPLITS}
    return {name: measure(chosen) for name, chosen in {**splits, "all": pairs}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the measures here")
    parser.add_argument("--show", action="store_true", help="list the pairs judged wrongly")
    arguments = parser.parse_args()
    measures = measure_all()
    print("pairs     true answers  with false alarm  claims  false alarms  wrong answers  detected")
    for name, row in measures.items():
        print(
            f"{name:<10}{row['true_answers']:>12}{row['answers_with_alarm']:>18.1%}"
            f"{row['claims']:>8}{row['claims_with_alarm']:>14.1%}"
            f"{row['false_answers']:>15}{row['detected']:>10.1%}"
        )
    if arguments.show:
        print("false alarms:", *measures["all"]["alarmed_ids"])
        print("missed:", *measures["all"]["missed_ids"])
    if arguments.json:
        arguments.json.write_text(json.dumps(measures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
