# Sourced by the scripts beside it: one attempt at a program on the nodes of this job, and what follows from its end.
# docs/running-on-slurm.md says the same in words. From the environment, where experiments/slurm.py puts it:
#   PSPO_HOME          this project (else: where sbatch was called)
#   PSPO_PYTHON        the interpreter (else: its .venv)
#   PSPO_CONTAINER     an apptainer image to run that in instead
#   PSPO_MAX_REQUEUES  times that a job sends itself back to the queue (else: 20)
#   PSPO_LAUNCH        srun: a task a rank | torchrun: a task a node, which starts its ranks (else: srun)
home=${PSPO_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
cd "${SLURM_SUBMIT_DIR:-$PWD}" # settings such as runs=runs mean what they mean where the job was submitted
python=("${PSPO_PYTHON:-$home/.venv/bin/python}")
if [[ -n ${PSPO_CONTAINER-} ]]; then
    python=(apptainer exec --nv --bind "$home,$PWD" --env "PYTHONPATH=$home/src" "$PSPO_CONTAINER" python)
fi
id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # a task's own number may be that of the whole array
id=${id:-${SLURM_JOB_ID:?this is a batch script: give it to sbatch}}
log=/dev/stderr

say() { printf 'pspo: job %s: %s\n' "$id" "$*" | tee -a "$log" >&2; }

# attempt STAGE SETTING...: what experiments/attempt.py makes of them, once; ends the job as the program ended.
attempt() {
    local plan status=0 verdict
    plan=$(mktemp)
    "${python[@]}" "$home/experiments/attempt.py" begin "$plan" "$@" || exit
    mapfile -d '' -t command <"$plan"
    rm "$plan"
    if ((${#command[@]} == 0)); then exit 0; fi
    log=${command[0]}
    trap at_limit TERM # the program is told by SLURM itself; this script stays to see how it ends
    trap : USR1
    launch "${command[@]:1}" >>"$log" 2>&1 &
    wait_for $! || status=$?
    verdict=$(ended "$status") || { [[ $status != 75 ]] || verdict=again; } # the disk may be full
    say "${verdict:-ended}; status $status"
    if [[ $verdict == again* ]]; then send_back; fi
    exit "$status"
}

ended() { "${python[@]}" "$home/experiments/attempt.py" end "$log" "$@"; } # STATUS [REASON]
times_sent() { "${python[@]}" "$home/experiments/attempt.py" send "$log" "$1"; } # MOST; notes that there is one more

# launch ARGUMENT...: Python with these on every task of the job. Ranks meet at the first node.
launch() {
    local first nodes=${SLURM_JOB_NUM_NODES:-1} cpus=${SLURM_CPUS_PER_TASK:-1} tasks=${SLURM_NTASKS_PER_NODE:-1}
    read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # SLURM's own address of it: a node's name need not resolve.
    MASTER_ADDR=$(scontrol show node -o "$first" | grep -oP '\bNodeAddr=\K\S+')
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # below those that systems give out; as in pspo.config.sweeps
    export MASTER_ADDR MASTER_PORT PYTHONUNBUFFERED=1
    # One failed task ends the others: SIGTERM, and SIGKILL after KillWait. srun does not take --cpus-per-task from sbatch.
    local srun=(srun --kill-on-bad-exit=1)
    if [[ ${PSPO_LAUNCH:-srun} == torchrun ]]; then
        local gpus=${SLURM_GPUS_PER_TASK:+--gpus-per-task=$((SLURM_GPUS_PER_TASK * tasks))}
        exec "${srun[@]}" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task=$((cpus * tasks)) $gpus \
            "${python[@]}" "$home/slurm/agent.py" --nnodes="$nodes" --nproc-per-node="$tasks" --max-restarts=0 \
            --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" "$@"
    fi
    exec "${srun[@]}" --cpus-per-task="$cpus" "${python[@]}" "$@"
}

wait_for() { # PID: its exit status; `wait` also returns for a signal that has a trap
    local status
    while true; do
        wait "$1" || true
        # Ended while a trap ran, its status is still to be asked for: that of `wait` was the signal's.
        kill -0 "$1" 2>/dev/null || { status=0; wait "$1" || status=$?; return "$status"; }
    done
}

# SIGTERM comes to the script where SLURM ends the job. Sent back by it, preempted or cancelled: SLURM has decided. At the
# time limit it would end here, though the run goes on from its last checkpoint.
at_limit() {
    if [[ $(job_says Reason) == TimeLimit ]]; then
        say "$(ended 143 'time limit reached before it could save (slurm.time, slurm.warn_s)')"
        send_back
    fi
}

job_says() { scontrol show job -o "$id" | grep -oP "\b$1=\K\S+" || true; } # JobState, Reason, Restarts

# Back into the queue, as this same job. Not one that SLURM has ended: who cancels a job means it. What SLURM sends back
# by itself (preemption, a lost node) does not count.
send_back() {
    local restarts=${SLURM_RESTART_COUNT:-0} most=${PSPO_MAX_REQUEUES:-20} times
    if [[ $(job_says Restarts) != "$restarts" ]]; then
        say "this job has been sent back already" # its node was taken for dead, and another attempt may be at work
    elif [[ $(job_says JobState) != RUNNING && $(job_says Reason) != TimeLimit ]]; then
        say "SLURM has ended this job ($(job_says JobState)), and decides whether it comes back"
    else
        times=$(times_sent "$most") || times=$restarts # not more than that; the disk may be full
        if ((times >= most)); then
            say "sent itself back $times times already (slurm.max_requeues=$most): not again; submitted anew it goes on"
        elif scontrol requeue "$id"; then
            say "sent back to the queue"
        fi
    fi
}
