#!/usr/bin/env bash
# Builds the image without Docker, and asks it a steered question as it is meant to run: not root,
# nothing writable but /tmp and its cache. For root on a machine with curl, buildah and debootstrap:
#
#   apt-get install --no-install-recommends buildah crun debootstrap
#   deploy/buildah.sh [more options of buildah bud]
#
# BASE names a folder to keep the base's files in, MIRROR a Debian mirror.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${INSIDE:-}" ] || INSIDE=1 exec unshare --mount "deploy/$(basename "$0")" "$@"
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
work=$(mktemp -d)
base=${BASE:-$work/base}
buildah=(buildah --root "$work/storage" --runroot "$work/run")
root=$work/root
pids=()
clean() {
  kill "${pids[@]}" 2> /dev/null || true
  wait
  umount -R "$root" 2> /dev/null || true
  "${buildah[@]}" umount --all > /dev/null || true
  rm -rf --one-file-system "$work"
}
trap clean EXIT

# A stand-in for python:3.11-slim-bookworm, which lies in a registry: Debian with its own Python.
[ -d "$base" ] || debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
  bookworm "$base" "${MIRROR:-http://deb.debian.org/debian}" > /dev/null
container=$("${buildah[@]}" from scratch)
"${buildah[@]}" copy -q "$container" "$base" / > /dev/null
"${buildah[@]}" commit -q "$container" localhost/python > /dev/null
began=$SECONDS
"${buildah[@]}" bud --format docker --pull=never --network host \
  --build-arg PYTHON=localhost/python -f deploy/Dockerfile -t adapter "$@" .
echo "built in $((SECONDS - began)) s"

container=$("${buildah[@]}" from --pull=never localhost/adapter)
image=$("${buildah[@]}" mount "$container")
echo "$(du -sm "$image" | cut -f1) MB, $(du -sm "$image/opt/adapter" | cut -f1) MB of it /opt/adapter"

# As compose.yaml runs it: user 10001, all of it read-only but /tmp and the cache.
mkdir "$root"
mount --bind "$image" "$root"
mount -o remount,bind,ro "$root"
mount -t proc none "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs none "$root/tmp"
mount -t tmpfs -o uid=10001,gid=10001 none "$root/var/cache/adapter"
sed -e 's#http://hosted:8000#http://127.0.0.1:18000#' -e '/^cache:/d' -e '/metrics_port/d' \
  deploy/adapter.yaml > "$root/tmp/adapter.yaml"
inside=(env -i PATH=/opt/adapter/bin:/usr/bin:/bin PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
  XDG_CACHE_HOME=/var/cache OMP_NUM_THREADS=1 /usr/sbin/chroot --userspec=10001:10001 "$root")

"${inside[@]}" python -c 'import os; print("user", os.getuid())'
if "${inside[@]}" touch /opt/adapter/x 2> /dev/null; then
  echo "the file system can be written to"
  exit 1
fi
mkfifo "$work/open"
"${inside[@]}" python -m adapter.demo.engine /opt/adapter/almanac/hosted.gguf \
  --port 18000 --alias hosted <> "$work/open" &
pids+=($!)
began=$(date +%s%N)
"${inside[@]}" adapter serve /tmp/adapter.yaml --port 18080 &
pids+=($!)
until curl -sf http://127.0.0.1:18080/healthz > /dev/null && curl -sf http://127.0.0.1:18000/health > /dev/null
do
  kill -0 "${pids[@]}"
  sleep 0.1
done
echo "ready after $((($(date +%s%N) - began) / 1000000)) ms"
question='{"model": "almanac", "prompt": "Question: Who is the chancellor of Marvania in 1206?\nAnswer:",
  "max_tokens": 16, "temperature": 0, "steering": {"alpha": 1, "trace": true}}'
curl -sS --fail -D "$work/headers" -H 'content-type: application/json' -d "$question" \
  http://127.0.0.1:18080/v1/completions > "$work/answer"
grep -i '^x-steering: on' "$work/headers"
python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["choices"][0]["text"])' "$work/answer"
