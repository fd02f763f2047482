"""Evaluation by generation: what a model answers, and how likely the right answer is to it."""

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.models.generative import GenerativeVLM
from fedvlm.training.answers import EncodedAnswers
from fedvlm.training.evaluation import mean_interval
from fedvlm.training.text_scores import require_scores, text_scores

_MOST_TOKENS = 64
_BATCH = 64


def answer(
    vlm: GenerativeVLM, encoded: EncodedAnswers, rows: NDArray[np.int64], batch_size: int = _BATCH
) -> list[str]:
    """Answer the prompts of rows of shape (n,), greedily.

    An answer is cut one token after the longest right one of these rows, and at 64.
    """
    if not len(rows):
        return []
    longest = max(len(encoded.answer_ids[int(row)]) for row in rows)
    own = encoded.processor
    found: list[str] = []
    for start in range(0, len(rows), batch_size):
        prompts = encoded.prompts(rows[start : start + batch_size])
        ids = vlm.generate(prompts, min(longest + 1, _MOST_TOKENS), own.ends, own.padding)
        found += [own.text(one) for one in ids]
    return found


@torch.inference_mode()
def negative_log_likelihoods(
    vlm: GenerativeVLM, encoded: EncodedAnswers, rows: NDArray[np.int64], batch_size: int = _BATCH
) -> NDArray[np.float64]:
    """Return the mean negative log-likelihood a token of each row's answer: shape (n,), in nats."""
    was_training = vlm.training
    vlm.eval()
    parts = [
        vlm.answer_losses(encoded.batch(rows[start : start + batch_size]))
        for start in range(0, len(rows), batch_size)
    ]
    vlm.train(was_training)
    return torch.cat(parts).double().numpy() if parts else np.zeros(0)


class AnswerEvaluator:
    """Evaluates a model's answers on fixed parts of a data set.

    Args:
        encoded: The data set's inputs.
        parts: Name → rows, for example test, ood; empty parts are left out.

    Raises:
        ConfigError: `rouge-score` is not installed.
    """

    def __init__(self, encoded: EncodedAnswers, parts: dict[str, NDArray[np.int64]]) -> None:
        require_scores()
        self._encoded = encoded
        self._parts = {name: part for name, part in parts.items() if len(part)}

    def __call__(self, vlm: GenerativeVLM) -> dict[str, float]:
        """Return metrics by name.

        For each part `P`: `P_exact_match`, `P_token_f1`, `P_rouge_l`, fractions in [0, 1];
        `P_answer_nll`, the mean over answers of their mean negative log-likelihood a token, in
        nats; `P_exact_match_low`, `P_exact_match_high`, a 95 % interval over the part's images.
        Where questions are of several kinds also `P_exact_match_KIND`. For the part `test` also
        `domain_D` (exact match by domain), and `worst_domain`.
        """
        metrics: dict[str, float] = {}
        for name, part in self._parts.items():
            references = [self._encoded.answers[int(row)] for row in part]
            scores = text_scores(answer(vlm, self._encoded, part), references)
            for key, values in scores.items():
                metrics[f"{name}_{key}"] = float(np.mean(values))
            exact = np.array(scores["exact_match"])
            low, high = mean_interval(exact, self._encoded.groups[part])
            metrics |= {f"{name}_exact_match_low": low, f"{name}_exact_match_high": high}
            losses = negative_log_likelihoods(vlm, self._encoded, part)
            metrics[f"{name}_answer_nll"] = float(losses.mean())
            kinds = self._encoded.kinds[part]
            if len(np.unique(self._encoded.kinds)) > 1:
                for kind in np.unique(kinds):
                    metrics[f"{name}_exact_match_{kind}"] = float(exact[kinds == kind].mean())
            if name == "test":
                metrics |= self._by_domain(exact, part)
        return metrics

    def _by_domain(self, exact: NDArray[np.float64], part: NDArray[np.int64]) -> dict[str, float]:
        domains, names = self._encoded.domains[part], self._encoded.domain_names
        found = {
            f"domain_{names[number]}": float(exact[domains == number].mean())
            for number in np.unique(domains)
        }
        return found | {"worst_domain": min(found.values())}
