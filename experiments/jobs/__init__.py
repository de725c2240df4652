"""A study on a SLURM cluster: what jobs are asked for, what they write down, and what became of them.

    options    conf/slurm as options of sbatch
    verdicts   how one attempt ended: done, to be tried again, or failed by itself
    lines      files of one JSON line after another
    attempts   the record of a run's attempts, written by its jobs
    ledger     what has been submitted
    queue      what squeue, scontrol and sacct say
    states     all of it together: one state for each cell

verdicts, lines and attempts import the standard library only: the batch scripts call them at a job's end, when seconds
count.
"""
