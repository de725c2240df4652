"""The paper's algorithm: `python -m pspo.train`, from a warm start or a published model to a trained policy.

What each name below is: `run` holds the parts (pspo.run: problems, sampler, grader, learner, tracker, checkpoints);
surrogates are in pspo.surrogates, advantages in pspo.advantages, the loss and its gradient in pspo.learner.
"""

from __future__ import annotations

from pspo.config import TrainConfig, program


def train(cfg: TrainConfig) -> None:
    """One run. Heavy imports stand inside, so that a wrong setting is told before them.

    Raises MismatchError where sampler and learner disagree on the first batch, NonFiniteError where an update is not
    finite; both leave the policy as it was before the update.
    """
    from pspo.advantages import group_advantages
    from pspo.batching import minibatches
    from pspo.run import Run
    from pspo.seeds import derive
    from pspo.types import samples_of

    with Run(cfg) as run:
        if run.done:
            return
        run.evaluate(step=0)
        run.log(step=0)
        for step in range(1, cfg.steps + 1):
            problems = run.problems(step)  # P problems, the same for a seed whatever the method
            groups = run.sample(problems, step)  # P x G completions with the sampler's log-probs
            rewards = run.reward(groups)  # [P, G]
            advantages = group_advantages(rewards, cfg.learner.advantage_scale, cfg.learner.advantage_eps)
            samples = run.with_signal(samples_of(groups, advantages.tolist()))
            old = run.old_log_probs(samples, step)  # the policy in the denominator of every ratio of this step
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
