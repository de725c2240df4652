"""The registry of metrics: every name a run may log, its unit and what it means. docs/metrics.md is made from it.

    python -m pspo.metrics > docs/metrics.md

Imports: standard library only.
"""

from __future__ import annotations

from typing import NamedTuple

RATIO_EDGES = (0.5, 0.8, 0.95, 0.99, 1.01, 1.05, 1.2, 2.0)
"""Of the ratios' distribution, on record as the share of tokens below each: GRPO-clip's usual bounds are among them."""


class Metric(NamedTuple):
    name: str
    unit: str
    meaning: str


SECTIONS: dict[str, list[Metric]] = {
    "Rollout": [
        Metric("reward/mean", "", "Mean reward of the step's completions (reward=...); by default accuracy/train."),
        Metric(
            "accuracy/train", "share", "Completions of the step graded correct, sampled at the rollout temperature."
        ),
        Metric(
            "reward/no_signal_share",
            "share",
            "Groups whose rewards are all equal, of all that were sampled: their advantages are zero.",
        ),
        Metric(
            "accuracy/train_lenient",
            "share",
            "The same under the lenient reading, which also looks for an answer without its #### or box. Where it is "
            "well above accuracy/train, the policy knows the answer and misses the format.",
        ),
        Metric("grade/ok_share", "share", "Completions whose answer was read and compared."),
        Metric("grade/no_answer_share", "share", "Completions in which no answer was found where the prompt wants it."),
        Metric("grade/timeout_share", "share", "Comparisons stopped at grading.timeout; rewarded 0, not answers."),
        Metric("grade/gold_unreadable_share", "share", "Completions of problems whose gold answer cannot be read."),
        Metric(
            "grade/error_share",
            "share",
            "Comparisons that failed in math-verify, or answers too long to be compared; rewarded 0.",
        ),
        Metric("length/mean", "tokens", "Mean length of the completions, or solutions; EOS included."),
        Metric("length/max", "tokens", "Longest completion."),
        Metric("length/truncated_share", "share", "Completions cut at rollout.max_new_tokens: no EOS, reward 0."),
        Metric(
            "rollout/refilled_groups",
            "groups",
            "Groups sampled in place of groups without signal (rollout.refill). All that was sampled counts above.",
        ),
    ],
    "Policy update": [
        Metric(
            "ratio/abs_dev_mean",
            "",
            "Mean |r - 1| over the completion tokens of all updates of the step; r = pi / pi_old.",
        ),
        Metric("ratio/max", "", "Largest ratio in the step: of a token, or of a sequence with ratio_level=sequence."),
        Metric("ratio/clamped_share", "share", "Tokens whose log-ratio was clamped before exp (|log r| > 20)."),
        *(
            Metric(f"ratio/below_{edge:g}_share", "share", f"Tokens with a ratio below {edge:g}, over all updates.")
            for edge in RATIO_EDGES
        ),
        Metric(
            "slope/zero_share",
            "share",
            "Tokens with an advantage whose surrogate has no slope at all: clip's bound is "
            "passed, or the ratio clamped.",
        ),
        Metric(
            "slope/small_share",
            "share",
            "Tokens with an advantage whose surrogate passes on less than a tenth of it; "
            "counts clip's zero and sigmoid's tails alike.",
        ),
        Metric(
            "kl/k1",
            "nats",
            "Mean of -log r over the tokens trained on, an estimate of KL(pi_old || pi); may be negative.",
        ),
        Metric("kl/k3", "nats", "Mean of r - 1 - log r: an estimate of the same, never negative."),
        Metric(
            "kl/reference",
            "nats",
            "Mean of the KL term's estimate (learner.kl_estimator) from the policy to the starting policy, before its "
            "coefficient; where learner.kl_coef is above 0.",
        ),
        Metric(
            "correction/mean", "", "Mean importance weight min(pi_old / sampler, cap); where learner.correction is on."
        ),
        Metric("correction/capped_share", "share", "Tokens whose importance weight was cut at learner.correction_cap."),
        Metric(
            "policy/entropy", "nats", "Mean entropy of the policy at completion tokens, at the rollout temperature."
        ),
        Metric("optim/loss", "", "Mean over the step's updates of the loss, all its terms together."),
        Metric("optim/grad_norm", "", "Mean over the step's updates of the gradient's norm before clipping."),
        Metric("optim/lr", "", "Learning rate of the step's last update."),
        Metric("optim/updates", "updates", "Optimiser updates of the step."),
        Metric("optim/groups", "groups", "Groups that the step learned from, after refilling and leaving out."),
    ],
    "Sampler against learner": [
        Metric(
            "gap/abs_dev_mean",
            "",
            "Mean |r - 1| between learner and sampler with equal weights: how far ratios are from "
            "1 before anything was learned from the batch. Of all groups in steps that are checked (the first, and the "
            "first after new weights); otherwise of what the step learns from, and with learner.old_log_probs=sampler "
            "of its first minibatch alone, where policy and sampler can be compared for nothing. With "
            "rollout.ahead the sampler's policy is a step older, and only the first step is checked on record. "
            "So all of gap/.",
        ),
        Metric(
            "gap/log_prob_max", "nats", "Largest difference in log-prob of any sampled token, learner against sampler."
        ),
        Metric("gap/kl", "nats", "Estimate (k3) of KL(sampler || learner) with equal weights, a token."),
        Metric(
            "gap/effective_share",
            "share",
            "Effective sample size of importance weights w from sampler to learner, (sum w)^2 / (n sum w^2), of n "
            "tokens; 1 where they agree.",
        ),
    ],
    "Evaluation": [
        Metric(
            "eval/validation_accuracy", "share", "T=0 accuracy on the validation part; logged at evaluation steps only."
        ),
        Metric("eval/validation_truncated_share", "share", "Validation completions cut at the token limit."),
    ],
    "Time and speed": [
        Metric("time/step_s", "s", "The whole step by the clock on the wall, less time/eval_s."),
        Metric(
            "time/rollout_s",
            "s",
            "Sampling the step's completions; with rollout.ahead, waiting for the next step's beside the learner.",
        ),
        Metric(
            "time/grade_s",
            "s",
            "Waiting for grades after the last completion; the rest is graded while sampling goes on.",
        ),
        Metric(
            "time/learn_s", "s", "Old log-probs and all updates; with rollout.ahead on a GPU, the engine's kernels too."
        ),
        Metric("time/exchange_s", "s", "Waiting for the other ranks' groups and grades, and handing over one's own."),
        Metric("time/check_s", "s", "The first steps' comparison of sampler and learner."),
        Metric("time/sync_s", "s", "Loading the new weights into the sampler."),
        Metric("time/other_s", "s", "The rest of time/step_s: prompts, advantages, batches, bookkeeping."),
        Metric("time/eval_s", "s", "Evaluation on the validation part, at evaluation steps."),
        Metric("time/save_s", "s", "Writing the checkpoint of the step before, which follows that step's line."),
        Metric(
            "speed/rollout_tokens_per_s",
            "tokens/s",
            "Completion tokens per second of sampling, beside the learner too.",
        ),
        Metric(
            "speed/learn_tokens_per_s",
            "tokens/s",
            "Prompt and completion tokens of the samples gone through per second of time/learn_s, each pass counted, "
            "and a prompt as often as completions have it.",
        ),
    ],
}

REGISTRY: dict[str, Metric] = {metric.name: metric for section in SECTIONS.values() for metric in section}


def page() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made by `make docs` from `src/pspo/metrics.py`; edit there. One JSON object a step in",
        "`<run_dir>/metrics.jsonl`, key `step` counting from 1; the object of step 0 holds the evaluation before",
        "training. W&B shows the same names.",
    ]
    for title, metrics in SECTIONS.items():
        lines += ["", f"## {title}", "", "| name | unit | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{m.name}` | {m.unit or '-'} | {m.meaning.replace('|', chr(92) + '|')} |" for m in metrics]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
