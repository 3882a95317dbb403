#!/usr/bin/env bash
# mount.sh gs://BUCKET[/FOLDER]: mount it read-only at mmx-tpu/data, for many small random reads.
source "$(dirname "$0")/lib.sh"
path=${1#gs://}
path=${path%/}
bucket=${path%%/*}

if mountpoint --quiet data; then
    [[ $(cat data.source) == "$path" ]] || { answer "failed: gs://$(cat data.source) is mounted" && exit 1; }
    answer "mounted gs://$path"
    exit
fi
if ! command -v gcsfuse >/dev/null; then # as cloud.google.com/storage/docs/cloud-storage-fuse/install
    source /etc/os-release
    keys=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    curl -fsS $packages/doc/apt-key.gpg | sudo tee $keys >/dev/null
    echo "deb [signed-by=$keys] $packages gcsfuse-$VERSION_CODENAME main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    # A host that has just booted is often upgrading itself: wait for its lock.
    { sudo apt-get -q -o DPkg::Lock::Timeout=300 update &&
        sudo apt-get -q -y -o DPkg::Lock::Timeout=300 install gcsfuse; } >gcsfuse.log 2>&1 ||
        { answer "failed: gcsfuse is not installed: $(tail -n 1 gcsfuse.log)" && exit 1; }
fi
mkdir -p data
# Data sets do not change under a run, so what is known of a file is kept for ever; Grain reads
# records at random and every file again in each epoch, and without this asks for each file anew.
flags=(-o ro --implicit-dirs --metadata-cache-ttl-secs=-1 --stat-cache-max-size-mb=-1
    --kernel-list-cache-ttl-secs=-1)
if [[ $path == */* ]]; then flags+=("--only-dir=${path#*/}"); fi
gcsfuse "${flags[@]}" "$bucket" data >gcsfuse.log 2>&1 ||
    { answer "failed: gcsfuse $bucket: $(tail -n 1 gcsfuse.log)" && exit 1; }
echo "$path" >data.source
ls -R data >/dev/null # fills the cache
answer "mounted gs://$path"
