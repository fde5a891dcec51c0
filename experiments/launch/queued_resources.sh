#!/usr/bin/env bash
# A TPU pod by gcloud's queued resources: ask for it, wait, run, start again when it must be, give it back.
#
#   export NAME=xl ZONE=us-east5-a PROJECT=my-project TYPE=v5p-128 VERSION=v2-alpha-tpuv5
#   experiments/launch/queued_resources.sh up                 # queue, and wait until the pod is there
#   experiments/launch/queued_resources.sh install            # copies this checkout to every worker, installs it
#   experiments/launch/queued_resources.sh train experiments/dit_xl_pod.py --workdir /mnt/runs/xl
#   experiments/launch/queued_resources.sh down
#
# What follows `train` goes to `vdit train`. The folder must be one that all workers see (Filestore, or a bucket
# mounted by gcsfuse). SPOT=1 asks for spot capacity, RESERVED=1 for reserved, NODES=n for n slices. RESTARTS: how
# often a run is started again (100), and a spot pod that was taken away is asked for again.
set -euo pipefail

: "${NAME:?name of the queued resource}" "${ZONE:?for instance us-east5-a}" "${PROJECT:?the Google Cloud project}"
again=75 # exit code of vdit: start the same command again
where=(--zone="$ZONE" --project="$PROJECT")
resources=(gcloud compute tpus queued-resources)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { echo "[launch] $*" >&2; }

state() { "${resources[@]}" describe "$NAME" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo ABSENT; }

up() {
    : "${TYPE:?accelerator type, for instance v5p-128}" "${VERSION:?runtime version, for instance v2-alpha-tpuv5}"
    local options=(--accelerator-type="$TYPE" --runtime-version="$VERSION")
    if [[ ${NODES:-1} -gt 1 ]]; then
        options+=(--node-count="$NODES" --node-prefix="$NAME")
    else
        options+=(--node-id="$NAME")
    fi
    if [[ ${SPOT:-} ]]; then options+=(--spot); fi
    if [[ ${RESERVED:-} ]]; then options+=(--reserved); fi
    if [[ $(state) == ABSENT ]]; then
        "${resources[@]}" create "$NAME" "${where[@]}" "${options[@]}" --async --quiet
    fi
    local now
    while now=$(state) && [[ $now != ACTIVE ]]; do
        case $now in
        FAILED | SUSPENDED | SUSPENDING | DELETING | ABSENT)
            say "$NAME is $now: see gcloud compute tpus queued-resources describe $NAME --zone=$ZONE"
            return 1
            ;;
        esac
        say "$NAME is $now"
        sleep 30
    done
}

down() { "${resources[@]}" delete "$NAME" "${where[@]}" --force --quiet; }

everywhere() {
    "${resources[@]}" ssh "$NAME" "${where[@]}" --node=all --worker=all --batch-size=all --quiet \
        --ssh-flag="-o ServerAliveInterval=30" --command="$1"
}

install() {
    local archive
    archive=$(mktemp -d)/vdit.tar.gz
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    "${resources[@]}" scp "$archive" "$NAME:vdit.tar.gz" "${where[@]}" --node=all --worker=all --quiet
    everywhere "mkdir -p vdit && tar -xzf vdit.tar.gz -C vdit && cd vdit && python3 -m venv .venv && \
        .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"
}

train() {
    local arguments log codes
    arguments=$(printf ' %q' "$@")
    log=$(mktemp)
    for ((attempt = 0; attempt <= ${RESTARTS:-100}; attempt++)); do
        if [[ $(state) != ACTIVE ]]; then # taken away: what is left of it must go before it can be asked for again
            down || true
            up && install
        fi
        # jax asks the machine for its peers: no variable says so here. gcloud tells little of exit codes: echo them.
        everywhere "cd vdit && VDIT_CLUSTER=1 .venv/bin/vdit train$arguments; echo vdit-exit-code \$?" |& tee "$log" || true
        codes=$(grep -o 'vdit-exit-code [0-9]*' "$log" | sort | uniq -c || true)
        say "attempt $attempt:" "${codes:-no worker answered}"
        if [[ $codes ]] && ! grep -qv 'code 0$' <<<"$codes"; then return 0; fi
        for code in 1 2 130; do
            if grep -q "vdit-exit-code $code\$" "$log"; then
                say "exit code $code: not started again"
                return "$code"
            fi
        done
        sleep 10
    done
    say "not started again: ${RESTARTS:-100} restarts were allowed (RESTARTS)"
    return "$again"
}

case ${1:-} in
up | down | install | state) "$1" ;;
train) shift && train "$@" ;;
*)
    sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
