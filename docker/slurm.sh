#!/usr/bin/env bash
# Trains on a Slurm cluster: Ray's head on the first node of the job, workers on the others, `tetrarch train` beside
# the head. All of it ends with the training, and the job's exit code is the training's.
#
# Needs: Slurm 22.05 or newer; this repository, set up (make setup EXTRA=gpu), and the home directory on all nodes.
# Start: sbatch docker/slurm.sh configs/llama3-8b-2x8.yaml run_dir=/shared/runs/llama3-8b-2x8
# Other sizes: sbatch --nodes=8 docker/slurm.sh configs/llama3-70b-8x8-h100.yaml. JOIN_S=900 waits longer for the nodes.
#SBATCH --job-name=tetrarch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --output=tetrarch-%j.log
set -euo pipefail

# Of the 300 s between SIGTERM and SIGKILL the training has GRACE_S to end its update and write a checkpoint.
readonly JOIN_S="${JOIN_S:-300}" GRACE_S=270 PORT=6379
steps=()
training=""

fail() {
    printf 'slurm.sh: %s\n' "$@" >&2
    exit 1
}

finish() {
    trap '' TERM INT
    kill ${training:+"$training"} "${steps[@]}" 2>/dev/null || true
    wait || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
}

# Before the time limit Slurm sends SIGTERM: the training may end in order, everything else follows it.
terminate() {
    if [ -z "$training" ]; then exit 143; fi
    kill -TERM "$training" 2>/dev/null || true
}

# A word that only this user can read, on all nodes.
make_token() {
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.tetrarch-token-$SLURM_JOB_ID"
    trap finish EXIT
    trap terminate TERM INT
    (
        umask 077
        head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
    )
}

start_head() {
    srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --nodelist="$1" \
        ray start --head --block --port="$PORT" --dashboard-host=127.0.0.1 &
    steps+=($!)
}

start_workers() {
    local head="$1" number="$2"
    srun --nodes="$number" --ntasks="$number" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --exclude="$head" \
        ray start --block --address="$head:$PORT" &
    steps+=($!)
}

# How many nodes Ray counts; nothing while the head is not yet there. Ray itself would wait for minutes.
joined() {
    timeout 30 python -c 'import ray
ray.init(log_to_driver=False, logging_level="error")
print(sum(node["Alive"] for node in ray.nodes()))' || true
}

wait_for() {
    local wanted="$1" found="" step until=$((SECONDS + JOIN_S))
    while true; do
        found=$(joined)
        if [ "${found:-0}" -ge "$wanted" ]; then return; fi
        for step in "${steps[@]}"; do
            kill -0 "$step" 2>/dev/null ||
                fail "Ray ended on a node before all had joined (${found:-0} of $wanted); its words are above." \
                    "If they name the port: another Ray runs there, so ask for whole nodes (--exclusive)"
        done
        if [ "$SECONDS" -ge "$until" ]; then
            fail "${found:-0} of $wanted nodes joined Ray within $JOIN_S s." \
                "Look above for what the others say; can they reach $RAY_ADDRESS? Slow disks: JOIN_S=900 sbatch ..."
        fi
        sleep 2
    done
}

train() {
    local code=0
    tetrarch train "$1" "deadlines.grace_s=$GRACE_S" "${@:2}" &
    training=$!
    wait "$training" || code=$?
    # A signal ends the wait, not the training.
    if kill -0 "$training" 2>/dev/null; then
        code=0
        wait "$training" || code=$?
    fi
    training=""
    return "$code"
}

main() {
    if [ $# -eq 0 ]; then fail "no configuration given; sbatch docker/slurm.sh configs/llama3-8b-2x8.yaml"; fi
    if [ -z "${SLURM_JOB_ID:-}" ]; then fail "this is a job, not a command; sbatch docker/slurm.sh $*"; fi
    PATH="$PWD/.venv/bin:$PATH"
    local nodes
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    if [ "${#nodes[@]}" -eq 0 ]; then fail "scontrol named no node of '$SLURM_JOB_NODELIST'; is this a job?"; fi
    export RAY_ADDRESS="${nodes[0]}:$PORT" RAY_USAGE_STATS_ENABLED=0

    make_token
    start_head "${nodes[0]}"
    wait_for 1
    if [ "${#nodes[@]}" -gt 1 ]; then start_workers "${nodes[0]}" "$((${#nodes[@]} - 1))"; fi
    wait_for "${#nodes[@]}"
    train "$@"
}

main "$@"
