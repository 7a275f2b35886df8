"""A web service hands what can wait to a Mac at home for the night, and has the rest back in the morning.

    pip install openai
    python overnight.py submit today.jsonl              # prints the batch's id
    python overnight.py collect batch_… --deadline 07:00 answers.jsonl rest.jsonl

today.jsonl is what OpenAI's Batch API takes. `collect` waits until all is answered or the deadline has come, calls off
what is left, and writes what was asked and not answered to rest.jsonl, to be asked elsewhere. It may be killed and
called again.
"""

import argparse
import json
import os
import time
from datetime import datetime, timedelta
from pathlib import Path

from openai import OpenAI
from openai.types import Batch

OVER = ("completed", "failed", "expired", "cancelled")
client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)


def submit(requests: Path) -> str:
    endpoint = json.loads(requests.read_text().splitlines()[0])["url"]
    file = client.files.create(file=requests, purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h").id


def collect(batch_id: str, deadline: datetime, answers: Path, rest: Path, look_every_s: float = 5.0) -> Batch:
    batch = client.batches.retrieve(batch_id)
    while batch.status not in OVER:
        if datetime.now() >= deadline and batch.status in ("validating", "in_progress"):
            batch = client.batches.cancel(batch_id)
        else:
            time.sleep(look_every_s)
            batch = client.batches.retrieve(batch_id)
    answered = lines(batch.output_file_id)
    asked = lines(batch.input_file_id)
    # What failed for a reason of its own would fail elsewhere too: it is among the answers, with its reason.
    refused = {name: line for name, line in lines(batch.error_file_id).items() if line.get("response")}
    write(answers, [*answered.values(), *refused.values()])
    write(rest, [line for name, line in asked.items() if name not in answered and name not in refused])
    return batch


def lines(file_id: str | None) -> dict[str, dict[str, object]]:
    if file_id is None:
        return {}
    found = map(json.loads, client.files.content(file_id).text.splitlines())
    return {str(line["custom_id"]): line for line in found}


def write(path: Path, said: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in said))


def next_time(clock: str) -> datetime:
    """When a clock shows this next, as 07:00."""
    now = datetime.now()
    at = datetime.combine(now.date(), datetime.strptime(clock, "%H:%M").time())
    return at if at > now else at + timedelta(days=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("submit")
    one.add_argument("requests", type=Path)
    two = commands.add_parser("collect")
    two.add_argument("batch")
    two.add_argument("answers", type=Path)
    two.add_argument("rest", type=Path)
    two.add_argument("--deadline", type=next_time, required=True, metavar="HH:MM")
    told = parser.parse_args()
    if told.command == "submit":
        print(submit(told.requests))
    else:
        batch = collect(told.batch, told.deadline, told.answers, told.rest)
        print(f"{batch.status}: {batch.request_counts}")


if __name__ == "__main__":
    main()
