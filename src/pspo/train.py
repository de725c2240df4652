"""The paper's algorithm: `python -m pspo.train`, from a warm start or a published model to a trained policy.

What each name below is: `run` holds the parts (pspo.run: problems, sampler, grader, learner, tracker, checkpoints);
surrogates are in pspo.surrogates, advantages in pspo.advantages, the loss and its gradient in pspo.learner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pspo.config import TrainConfig, program, run_dir_of
from pspo.rundir import claimed

if TYPE_CHECKING:
    from pspo.run import Run


def train(cfg: TrainConfig) -> None:
    """One run, in a directory of its own; nothing is done where it is complete.

    Raises MismatchError where sampler and learner disagree at the start, NonFiniteError where the policy or an update
    is not finite. Heavy imports stand inside the functions, so that a wrong setting or directory is told before them.
    """
    with claimed(run_dir_of(cfg), cfg) as complete:
        if complete:
            return
        from pspo.run import Run

        with Run(cfg) as run:
            optimise(run, cfg)


def optimise(run: Run, cfg: TrainConfig) -> None:
    """The algorithm."""
    from pspo.advantages import group_advantages
    from pspo.batching import minibatches
    from pspo.seeds import derive
    from pspo.types import samples_of

    run.evaluate(step=0)
    run.log(step=0)
    for step in range(1, cfg.steps + 1):
        problems = run.problems(step)  # P problems, the same for a seed whatever the method
        groups = run.sample(problems, step)  # P x G completions with the sampler's log-probs
        rewards = run.reward(groups)  # [P, G]
        advantages = group_advantages(rewards, cfg.learner.advantage_scale, cfg.learner.advantage_eps)
        samples = samples_of(groups, advantages.tolist())
        run.check(samples, step)  # at the start of a run: sampler and learner are the same policy
        samples = run.with_signal(samples, rewards)
        old = run.old_log_probs(samples)  # the policy in the denominator of every ratio of this step
        for inner in range(cfg.learner.passes):  # mu passes over the same samples: ratios leave 1
            for part in minibatches(len(samples), cfg.learner.minibatches, derive(cfg.seed, "pass", step, inner)):
                run.update([samples[i] for i in part], [old[i] for i in part], step)
        run.sync()  # the sampler gets the learner's weights
        run.evaluate(step)
        run.log(step)
    run.finish()


main = program("train", TrainConfig)(train)

if __name__ == "__main__":
    main()
