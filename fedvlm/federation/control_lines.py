"""What public pairs alone are worth: the line that a private run must be read against.

Beside zero-shot stands a head from public pairs, which costs no privacy and needs no federation. A
gain over zero-shot that is below this line was not worth the private data.
"""

from fedvlm.adapters.linear_head import LinearMapHead
from fedvlm.federation.head_plan import set_public
from fedvlm.federation.task import Task

_PARTS = ("test", "ood", "withheld", "retention")


def control_lines(task: Task) -> dict[str, float]:
    """Score the untouched model, and the public-only control on it.

    Args:
        task: The federation's task; its adapter is put back to where everybody starts.

    Returns:
        One-of-100 retrieval as fractions: `zero_shot` and `control`, and the same with
        `ood_`, `withheld_` and `retention_` before; of the control nothing where there are no two
        public pairs, and nothing at all without data to score on.
    """
    if not len(task.data):
        return {}
    vlm, public = task.model.vlm, task.splits.public
    kept = vlm.head
    before = task.view.read()
    task.reset()
    try:
        vlm.head = None
        lines = _named("zero_shot", task.evaluator(vlm))
        if len(public) > 1:
            control = LinearMapHead(vlm, 0)  # its map is zero: the control is all there is
            set_public(task.model, task.data, task.pairs, public, control)
            vlm.head = control
            lines |= _named("control", task.evaluator(vlm))
    finally:
        vlm.head = kept
        task.view.write(before)
    return lines


def _named(name: str, scores: dict[str, float]) -> dict[str, float]:
    found = {}
    for part in _PARTS:
        score = scores.get(f"{part}_one_of_100")
        if score is not None:
            found[name if part == "test" else f"{part}_{name}"] = score
    return found
