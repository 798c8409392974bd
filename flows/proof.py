"""The proof of a build as its manifest has it, and what it says about promotion."""

from typing import Any

from flows.judged import main_lines
from flows.plan import Plan
from schemas.recipe import Promote
from stillroom.records import Record
from stillroom.stored import StoredTable
from stillroom.stores import Store

__all__ = ["judged_of", "proof_of", "verdict"]


def proof_of(plan: Plan, records: dict[str, Record]) -> dict[str, Any] | None:
    """Arms and differences of the recipe's first proof, or None where it has none.

    `arms`: per arm rows, learning rate, seeds, accuracy with its 95 % interval, nll, ece, per_class.
    `differences`: gain of one arm against another with its 95 % interval.
    """
    import polars as pl

    stages = [stage for stage in plan.stages if stage.op == "evaluate.student" and stage.name in records]
    if not stages:
        return None
    name, record = stages[0].name, records[stages[0].name]
    ablations = plan.graph.recipe.stages[name].params.get("ablations", [])
    named = {f"without_{place}": f"without_{stage}" for place, stage in enumerate(ablations if isinstance(ablations, list) else [ablations])}

    def arm_name(arm: str) -> str:
        role, _, labels = arm.rpartition(".")
        return f"{named.get(role, role)}.{labels}"

    frame = StoredTable(Store(plan.store), record.table).frame()
    classes = frame.filter(pl.col("kind") == "class")
    arms = []
    for line in frame.filter(pl.col("kind") == "arm").iter_rows(named=True):
        of_arm = classes.filter(pl.col("arm") == line["arm"])
        student = stages[0].resolved.inputs[line["arm"]].stage
        arms.append(
            {
                "arm": arm_name(line["arm"]),
                "rows": line["rows"],
                "lr": line["learning_rate"],
                "seeds": line["seeds"],
                "accuracy": line["accuracy"],
                "low": line["low"],
                "high": line["high"],
                "nll": line["nll"],
                "ece": line["ece"],
                "seconds": records[student].seconds if student in records else None,
                "per_class": [{"label_name": row["label_name"], "accuracy": row["accuracy"]} for row in of_arm.iter_rows(named=True)],
            }
        )
    found = frame.filter(pl.col("kind") == "difference").select("arm", "against", "gain", "low", "high").to_dicts()
    differences = [{**line, "arm": arm_name(line["arm"]), "against": arm_name(line["against"])} for line in found]
    return {"stage": name, "table": {"name": record.table.name, "version": record.table.version}, "arms": arms, "differences": differences}


def judged_of(plan: Plan, records: dict[str, Record]) -> list[dict[str, Any]]:
    """What each evaluate.distilled stage of a recipe found: `stage`, and `lines` of kinds arm, difference and ranking, without what is null."""
    import polars as pl

    found = []
    for stage in plan.stages:
        if stage.op == "evaluate.distilled" and stage.name in records:
            frame = StoredTable(Store(plan.store), records[stage.name].table).frame().filter(pl.col("kind") != "seed")
            lines = [{name: value for name, value in line.items() if value is not None} for line in frame.iter_rows(named=True)]
            sets = {name: edge.stage for name, edge in stage.resolved.inputs.items()}
            found.append({"stage": stage.name, "sets": sets, "lines": lines})
    return found


def verdict(promote: Promote, manifest: dict[str, Any], current: dict[str, Any] | None) -> tuple[bool, str]:
    """Whether a snapshot's proof and judged sets meet `promote:`, and why in a few words.

    Over the control the interval is paired by seed and test row. The promoted snapshot's students
    are not trained again, so over it the interval is the worst case of the two: the candidate's
    lower end less the other's upper end. Over random, every judged set must pass by its main line.
    """
    proof, reasons = manifest["proof"], []
    if promote.min_gain_over_random is not None:
        ok, text = _over_random(promote.min_gain_over_random, manifest.get("judged") or [])
        if not ok:
            return False, text
        reasons.append(text)
    if proof is None:
        if promote.min_gain_over_random is None or promote.min_gain_over_control is not None or promote.min_gain_over_current is not None:
            return False, "the recipe has `promote:` and no proof; add an evaluate.student stage"
        return True, "; ".join(reasons)
    if promote.min_gain_over_control is not None:
        gains = [line for line in proof["differences"] if line["arm"].startswith("candidate.") and line["against"].startswith("control.")]
        best = next((line for line in gains if line["arm"] == "candidate.stored"), gains[0] if gains else None)
        if best is None:
            return False, "the proof has no control to compare with; add `control: {in_place_of: …}`"
        text = f"{best['gain']:+.1%} [{best['low']:+.1%}, {best['high']:+.1%}] over its control"
        if best["low"] < promote.min_gain_over_control:
            return False, f"{text}, and {promote.min_gain_over_control:+.1%} is asked of the lower end"
        reasons.append(text)
    if promote.min_gain_over_current is not None and current and current.get("proof"):
        low = best_arm(proof)["low"] - best_arm(current["proof"])["high"]
        text = f"at worst {low:+.1%} against {current['name']}@{current['number']}"
        if low < promote.min_gain_over_current:
            return False, f"{text}, and {promote.min_gain_over_current:+.1%} is asked"
        reasons.append(text)
    return True, "; ".join(reasons) or "nothing was asked of it"


def _over_random(least: float, judged: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether every judged set gains so much over random at the lower end of its interval, and each one's gain in words."""
    gains = [(line.title, line.gains["random"]) for line in main_lines(judged)]
    if not gains:
        return False, "the snapshot says of no set what it gains over random; build it again"
    failing = [title for title, gain in gains if gain["low"] < least]
    text = ", ".join(f"{title} {gain['gain']:+.1%} [{gain['low']:+.1%}, {gain['high']:+.1%}]" for title, gain in gains) + " over random"
    if failing:
        return False, f"{text}, and {least:+.1%} is asked of the lower end of every set; not met by {', '.join(failing)}"
    return True, text


def best_arm(proof: dict[str, Any]) -> dict[str, Any]:
    """The candidate as trainers will use it: with stored labels where there are some."""
    candidates = {arm["arm"]: arm for arm in proof["arms"] if arm["arm"].startswith("candidate.")}
    return candidates.get("candidate.stored") or candidates["candidate.hard"]
