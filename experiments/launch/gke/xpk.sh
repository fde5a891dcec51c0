#!/usr/bin/env bash
# A run on a GKE cluster of TPUs by XPK (pip install xpk), which makes the JobSet itself.
#
#   export CLUSTER=my-cluster PROJECT=my-project ZONE=us-east5-a IMAGE=us-docker.pkg.dev/my-project/vdit/vdit:1
#   experiments/launch/gke/xpk.sh xl v5p-128 1 experiments/dit_xl_pod.py --workdir /mnt/runs/xl
#
# The arguments: a name, the TPU's type, the number of slices, and what goes to `vdit train`. The folder must be one
# that all pods see (storage attached to the cluster by `xpk storage`). To end it: xpk workload delete --workload NAME.
set -euo pipefail

: "${CLUSTER:?the cluster}" "${PROJECT:?the Google Cloud project}" "${ZONE:?its zone}" "${IMAGE:?image with vdit}"
if [[ $# -lt 4 ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
name=$1 type=$2 slices=$3
shift 3
# Exit code 75 of vdit (start again) is among those that restart the workload, 2 (to be fixed) and 1 are not.
# A pod that is to go has 180 s: longer than a save takes.
xpk workload create --workload "$name" --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" \
    --tpu-type "$type" --num-slices "$slices" --docker-image "$IMAGE" \
    --max-restarts 100 --restart-on-exit-codes 75 --termination-grace-period-seconds 180 \
    --command "exec vdit train$(printf ' %q' "$@")"
