"""How a run went, in a few lines or as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...bulk.works import ON_DEVICE

if TYPE_CHECKING:
    from collections import Counter

    from ...bulk.kept.journal import Keeper
    from ...writing.output import Output


@dataclass(frozen=True, slots=True)
class Summary:
    """`usage` covers all runs that OUT took; `taken` are the documents whose answer was known before this one."""

    out: Output[Any]
    keeper: Keeper
    elapsed_s: float
    made: str

    @property
    def documents(self) -> int:
        return self.out.written + self.out.failed

    @property
    def rate(self) -> float:
        return self.documents / max(self.elapsed_s, 1e-9)

    @property
    def devices(self) -> dict[str, float]:
        """The share of the computed documents that each device made."""
        counts = {name: count for name, count in self.keeper.usage.items() if name.startswith(ON_DEVICE)}
        total = sum(counts.values())
        return {name.removeprefix(ON_DEVICE): round(count / total, 4) for name, count in counts.items()}

    def sentences(self) -> list[str]:
        out, said = self.out, []
        if (failure := out.first_failure) is not None:
            place = f"{failure.file}, " if failure.file is not None else ""
            name = "" if failure.id is None else f"id {failure.id!r}, "
            said.append(f"The first that failed: {place}{name}{failure.reason}")
        if cut := _cut(self.keeper.usage):
            said.append(cut)
        if len(self.keeper.fingerprints) > 1:
            said.append(
                f"The {self.made} are of {len(self.keeper.fingerprints)} models or kinds of device, and may differ in "
                f"the last digits or be of no use together: {', '.join(sorted(self.keeper.fingerprints))}."
            )
        if out.retryable:
            said.append(
                f"{out.retryable:,} of those that failed may succeed another time: run the same command again, which "
                f"computes only them. What that takes is in {out.folder.path.name}; --no-resume removes it."
            )
        failed = f"{out.failed:,} failed, listed in {out.errors_path}" if out.failed else "0 failed"
        known = f", {self.keeper.taken:,} known before" if self.keeper.taken else ""
        where = f"{self.made} in {out.name}" if out.written else f"{out.name} was not written"
        if out.set_aside is not None:
            where += f", and an earlier run's is now {out.set_aside}"
        pace = f"{self.rate:,.1f} docs/s, {self.elapsed_s:.1f} s"
        return [*said, f"{self.documents:,} documents, {failed}{known}; {pace}; {where}"]

    def as_dict(self) -> dict[str, Any]:
        usage = self.keeper.usage
        return {
            "documents": self.documents,
            "written": self.out.written,
            "failed": self.out.failed,
            "retryable": self.out.retryable,
            "cached": self.keeper.taken,
            "cut": usage["truncated_texts"] + usage["cut_answers"],
            "tokens": usage["prompt_tokens"] + usage["completion_tokens"],
            "tokens_lost": usage["truncated_tokens"],
            "seconds": round(self.elapsed_s, 3),
            "docs_per_s": round(self.rate, 1),
            "devices": self.devices,
            "fingerprints": sorted(self.keeper.fingerprints),
            "output": self.out.name if self.out.written else None,
            "errors": str(self.out.errors_path) if self.out.failed else None,
        }


def _cut(usage: Counter[str]) -> str | None:
    if answers := usage["cut_answers"]:
        many = "1 answer was" if answers == 1 else f"{answers:,} answers were"
        return f"{many} cut off where --max-tokens, or the context, ended: finish_reason is length."
    cut, lost = usage["truncated_texts"], usage["truncated_tokens"]
    if not cut:
        return None
    many = "1 text was" if cut == 1 else f"{cut:,} texts were"
    read = usage["prompt_tokens"]
    missing = f": about {lost:,} tokens were not read, {lost / (lost + read):.0%} of all" if lost else ""
    return (
        f"{many} longer than the model reads and cut{missing}. --chunk N makes a vector for each N tokens, "
        "--no-truncate fails such texts."
    )
