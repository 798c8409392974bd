"""Drafts: the stages of a recipe before they are checked, with those that stillroom adds.

A recipe says less than what runs. A proof stands for a student trained on each arm; a control for a
twin of every stage between the random choice and the proof; `--rows` for a sample after each source.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from schemas.recipe import Edge, Recipe, Run, Stage, parse_edge
from schemas.wording import near
from stillroom import registry
from stillroom.errors import RecipeError
from stillroom.operators import Input

__all__ = ["Draft", "draft", "prepared", "sampled"]

PROOF, STUDENT, JUDGED = "evaluate.student", "train.student", "evaluate.distilled"
ROLES = ("candidate", "raw", "tune", "test")


@dataclass(frozen=True)
class Draft:
    """A stage as asked for: edges by input name, parameters as written.

    `hidden` stages are those that stillroom adds; `stage` is the recipe's stage that they belong to.
    """

    name: str
    op: str
    inputs: dict[str, Edge]
    params: dict[str, Any]
    stage: Stage
    seed: int | None = None
    run: Run = field(default_factory=Run)
    hidden: bool = False


def draft(recipe: Recipe, faults: list[RecipeError]) -> dict[str, Draft]:
    """The stages of a recipe with its proofs taken apart; what is wrong is added to `faults`."""
    drafts: dict[str, Draft] = {}
    for name, stage in recipe.stages.items():
        inputs: dict[str, Edge] = {}
        for key, edges in stage.inputs.items():
            inputs[key] = edges[0]
            if len(edges) > 1:
                faults.append(
                    RecipeError(name, stage.at(f"from.{key}"), f"names {len(edges)} stages", "one input reads one stage; table.mix makes one of several")
                )
        drafts[name] = Draft(name, stage.op, inputs, stage.params, stage, stage.seed, stage.run)
    for name in [name for name, found in drafts.items() if found.op == PROOF]:
        _Proof(drafts, drafts[name], faults).expand()
    promote = recipe.publish.promote if recipe.publish else None
    if promote and promote.min_gain_over_random is not None and not any(found.op == JUDGED for found in drafts.values()):
        problem = "no stage compares a set with a random choice"
        hint = "add one: {op: evaluate.distilled, from: {mine: …, real: split.train, test: split.test}}, or ask for min_gain_over_control of a proof"
        faults.append(RecipeError("", recipe.at("publish.promote.min_gain_over_random"), problem, hint))
    return drafts


def sampled(drafts: dict[str, Draft], sources: Iterable[str], rows: int) -> dict[str, Draft]:
    """The same stages with a stratified sample of `rows` taken after each of these sources: a trial."""
    trial = dict(drafts)
    for name in sources:
        twin = f"{name}--trial"
        trial = {
            key: replace(found, inputs={at: Edge(stage=twin, split=edge.split) if edge.stage == name else edge for at, edge in found.inputs.items()})
            for key, found in trial.items()
        }
        trial[twin] = replace(drafts[name], name=twin, op="table.sample", inputs={"samples": Edge(stage=name)}, params={"rows": rows}, seed=None, hidden=True)
    return trial


def prepared(found: Draft, first: str, operator: str, params: Iterable[str]) -> tuple[Draft, Draft]:
    """A stage and the hidden one that prepares its first input, under those of its parameters that both know."""
    edge = next((edge for name, edge in found.inputs.items() if name in ("", "0", first)), None)
    if edge is None:
        return found, found
    name = f"{found.name}--prepared"
    shared = {key: value for key, value in found.params.items() if key in set(params)}
    before = replace(found, name=name, op=operator, inputs={"": edge}, params=shared, hidden=True)
    inputs = {at: Edge(stage=name) if source is edge else source for at, source in found.inputs.items()}
    return replace(found, inputs=inputs), before


class _Proof:
    """Takes one proof apart: an arm is a set of samples and a kind of label, and a hidden student on it."""

    def __init__(self, drafts: dict[str, Draft], proof: Draft, faults: list[RecipeError]) -> None:
        self.drafts, self.proof, self.faults = drafts, proof, faults

    def expand(self) -> None:
        """Replace the proof by a measure of the arms' models, and add the arms."""
        params = dict(self.proof.params)
        control, ablations, student = params.pop("control", None), params.pop("ablations", []), params.pop("student", {})
        for role in ROLES:
            if role not in self.proof.inputs:
                self._fault(f"from.{role}", "is missing", "a proof reads from: {candidate: …, raw: …, tune: split.validation, test: split.test}")
        for role in self.proof.inputs:
            if role not in ROLES:
                self._fault(f"from.{role}", "unknown input", near(role, ROLES))
        if not isinstance(student, dict):
            self._fault("student", "should be a mapping", "write student: {net: cnn, steps: 400, seeds: 5}")
        if self.faults or not isinstance(student, dict):
            return
        arms = self._arms(control, ablations if isinstance(ablations, list) else [ablations])
        inputs = {"test": self.proof.inputs["test"]}
        for arm, edge in arms.items():
            labels = arm.rpartition(".")[2]
            name = f"{self.proof.name}--{arm.replace('.', '-')}"
            self.drafts[name] = replace(
                self.proof,
                name=name,
                op=STUDENT,
                inputs={"samples": edge, "tune": self.proof.inputs["tune"]},
                params={**student, "labels": labels},
                hidden=True,
            )
            inputs[arm] = Edge(stage=name)
        self.drafts[self.proof.name] = replace(self.proof, inputs=inputs, params=params)

    def _arms(self, control: Any, ablations: list[Any]) -> dict[str, Edge]:
        candidate = self.proof.inputs["candidate"]
        arms = {"raw.hard": self.proof.inputs["raw"]} | self._labelled("candidate", candidate)
        if control is not None:
            if not isinstance(control, dict) or set(control) - {"pool"} != {"in_place_of"}:
                self._fault("control", "should name a stage and a pool", "write control: {in_place_of: core, pool: split.train}")
            elif self._known("control.in_place_of", control["in_place_of"]):
                arms |= self._labelled("control", self._twin(candidate, control["in_place_of"], self._random(control)))
        for place, stage in enumerate(ablations):
            if self._known("ablations", stage):
                without = self._twin(candidate, stage, self._before(stage), f"--without-{stage}")
                if without is not None:
                    # By place, not by name: arms count in the fingerprint, and names of stages don't.
                    arms |= self._labelled(f"without_{place}", without, stored_only=True)
        return arms

    def _labelled(self, role: str, edge: Edge | None, *, stored_only: bool = False) -> dict[str, Edge]:
        """The arms of a set of samples: with hard labels, and with stored ones where some stage before stores them."""
        if edge is None:
            return {}
        stored = any(self.drafts[name].op.startswith("reinforce.") for name in self._above(edge.stage))
        kinds = ["stored"] if stored and stored_only else ["hard", "stored"] if stored else ["hard"]
        return {f"{role}.{kind}": edge for kind in kinds}

    def _random(self, control: dict[str, Any]) -> Edge:
        """A random choice from the pool, with as many rows of each class as the stage that it stands for."""
        name = control["in_place_of"]
        chosen = self.drafts[name]
        try:
            pool = parse_edge(control["pool"]) if "pool" in control else self._before(name)
        except ValueError as error:
            self._fault("control.pool", str(error))
            pool = None
        twin = f"{name}--random"
        self.drafts[twin] = replace(
            chosen, name=twin, op="prune.random_like", inputs={"samples": pool or Edge(stage=name), "like": Edge(stage=name)}, params={}, hidden=True
        )
        return Edge(stage=twin)

    def _before(self, stage: str) -> Edge | None:
        """What a stage's consumers read when it is left out: its first input, or nothing for a source."""
        found = self.drafts[stage]
        try:
            operator = registry.load(found.op)
        except RecipeError:
            return None  # resolve says that there is no such operator
        declared = list(operator.inputs)
        for name, edge in found.inputs.items():
            at = declared[int(name or 0)] if (name == "" or name.isdecimal()) and declared != ["*"] and int(name or 0) < len(declared) else name
            if operator.inputs.get(at, operator.inputs.get("*", Input())).kind == "samples":
                return edge
        return None

    def _twin(self, edge: Edge, replaced: str, by: Edge | None, suffix: str = "--random") -> Edge | None:
        """The edge with one stage replaced, every stage between them made again as a hidden twin."""
        if edge.stage == replaced:
            return None if by is None else Edge(stage=by.stage, split=edge.split or by.split)
        if replaced not in self._above(edge.stage):
            return edge
        found = self.drafts[edge.stage]
        twins = {name: self._twin(source, replaced, by, suffix) for name, source in found.inputs.items()}
        inputs = {name: source for name, source in twins.items() if source is not None}
        if not inputs or (len(inputs) < len(twins) and twins[next(iter(twins))] is None and found.op != "table.mix"):
            return None
        name = f"{edge.stage}{suffix}"
        self.drafts[name] = replace(found, name=name, inputs=inputs, params=_left(found, inputs), hidden=True)
        return Edge(stage=name, split=edge.split)

    def _above(self, stage: str, seen: frozenset[str] = frozenset()) -> set[str]:
        """A stage and all those that it reads from."""
        if stage in seen or stage not in self.drafts:
            return set()
        above = {stage}
        for edge in self.drafts[stage].inputs.values():
            above |= self._above(edge.stage, seen | {stage})
        return above

    def _known(self, field_name: str, stage: Any) -> bool:
        if not isinstance(stage, str) or stage not in self.drafts:
            self._fault(field_name, f"unknown stage '{stage}'", near(str(stage), self.drafts))
            return False
        if stage not in self._above(self.proof.inputs["candidate"].stage):
            self._fault(
                field_name, f"'{stage}' is not on the way to the candidate '{self.proof.inputs['candidate']}'", "name a stage that the candidate is made with"
            )
            return False
        return True

    def _fault(self, field_name: str, problem: str, hint: str = "") -> None:
        self.faults.append(RecipeError(self.proof.name, self.proof.stage.at(field_name), problem, hint))


def _left(found: Draft, inputs: dict[str, Edge]) -> dict[str, Any]:
    """A mix's parameters without the weights of inputs that are left out."""
    weights = found.params.get("weights")
    if not isinstance(weights, dict):
        return found.params
    kept = {name: weight for name, weight in weights.items() if name in inputs}
    return {**found.params, "weights": kept} if len(kept) > 1 else {name: value for name, value in found.params.items() if name != "weights"}
