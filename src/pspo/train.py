"""The paper's algorithm: `python -m pspo.train`, from a warm start or a published model to a trained policy.

What each name below is: `run` holds the parts (pspo.run: problems, sampler, grader, learner, tracker, checkpoints);
surrogates are in pspo.surrogates, advantages in pspo.advantages, the loss and its gradient in pspo.learner.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from pspo.config import TrainConfig, program, run_dir_of
from pspo.ranks import joined
from pspo.rundir import Place, claimed
from pspo.stopping import stoppable

if TYPE_CHECKING:
    from pspo.run import Run


def train(cfg: TrainConfig) -> None:
    """One run, in a directory of its own; it goes on from the newest checkpoint there, and nothing is done where it is
    complete.

    Under torchrun or srun every rank runs this; one process alone is a rank of one. Raises MismatchError where sampler
    and learner disagree at the start, NonFiniteError where the policy or an update is not finite, and ends with Stopped
    where a signal asked for it. Heavy imports stand inside the functions, so that a wrong setting or directory is told
    before them.
    """
    with stoppable() as stop:
        with joined(cfg.device, cfg.rank_timeout) as ranks, ExitStack() as stack:
            claim = partial(stack.enter_context, claimed(run_dir_of(cfg), cfg))
            if ranks.from_first(claim, "claiming the run's directory"):
                return
            find = partial(Place, run_dir_of(cfg))
            place = stack.enter_context(ranks.together(find, "looking for the run's directory"))
            from pspo.run import Run

            with Run(cfg, ranks, place, stop) as run:
                (optimise if cfg.train_on == "samples" else imitate)(run, cfg)
        stop.end()


def optimise(run: Run, cfg: TrainConfig) -> None:
    """The algorithm."""
    from pspo.advantages import group_advantages
    from pspo.batching import minibatches
    from pspo.seeds import derive

    inner, done = cfg.learner, run.resume()  # steps; 0 where nothing is saved
    if not done:
        run.evaluate(step=0)
        run.log(step=0)
    for step in range(done + 1, cfg.steps + 1):
        problems = run.problems(step)  # P problems, the same for a seed whatever the method
        groups = run.sample(problems, step)  # P x G completions with the sampler's log-probs
        rewards = run.reward(groups, step)  # [P, G]
        groups, rewards = run.refill(groups, rewards, step)  # off by default: groups without signal, sampled anew
        advantages = group_advantages(rewards, inner.advantage_scale, inner.advantage_eps)
        run.sleep_sampler()  # off by default: until `sync` its memory is the learner's
        run.check(groups, step)  # at the start of a run: sampler and learner are the same policy
        run.sample_ahead(step + 1)  # off by default: the next step's groups, by this policy, while it learns
        batch = run.batch(groups, advantages, rewards)  # flat tensors of the completions that give a signal
        passes = [  # mu passes over the same batch: ratios leave 1
            minibatches(batch, inner.minibatches, derive(cfg.seed, "pass", step, k), inner.minibatch_of)
            for k in range(inner.passes)
        ]
        run.fix_old_log_probs(batch, passes)  # of the policy in the denominator of every ratio of this step
        for parts in passes:
            for part in parts:
                run.update(batch, part, step)  # surrogate, gradient, one optimiser step
        run.sync()  # the sampler gets the learner's weights
        run.evaluate(step)
        run.log(step)
        if run.save(step):  # all that the next step depends on; told to stop, the run goes on from here another time
            return
    run.finish()


def imitate(run: Run, cfg: TrainConfig) -> None:
    """Supervised fine-tuning on the data set's solutions, step by step like `optimise`: a baseline."""
    import torch

    from pspo.batching import minibatches
    from pspo.seeds import derive

    inner, done = cfg.learner, run.resume()
    if not done:
        run.evaluate(step=0)
        run.log(step=0)
    for step in range(done + 1, cfg.steps + 1):
        groups = run.demonstrate(run.problems(step))  # P groups of one: the solution
        batch = run.batch(groups, torch.ones(len(groups), 1), None)
        run.sleep_sampler()
        for part in minibatches(batch, inner.minibatches, derive(cfg.seed, "pass", step, 0), inner.minibatch_of):
            run.update(batch, part, step)  # with advantages of 1 and ratios that are 1, the gradient of log pi
        run.sync()
        run.evaluate(step)
        run.log(step)
        if run.save(step):
            return
    run.finish()


main = program("train", TrainConfig)(train)

if __name__ == "__main__":
    main()
