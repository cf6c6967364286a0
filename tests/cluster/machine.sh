#!/bin/sh
# The first process of one machine of the test cluster, already in its own network, mount, UTS, IPC and process namespaces.
# It gives the machine its own files and then waits for ever; ending it ends every process of the machine.
#
#   machine.sh NAME FOLDER    prints "ready" when the machine can be used
set -eu
name=$1 own=$2

hostname "$name"
ip link set lo up
mount -t proc proc /proc

# The kubelet sets these for the whole computer: here it writes into plain files.
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    mkdir -p "$own/sysctl/${setting%/*}"
    cat "/proc/sys/$setting" >"$own/sysctl/$setting"
    mount --bind "$own/sysctl/$setting" "/proc/sys/$setting"
done

# A sysfs that shows this network namespace, with the computer's cgroups.
mkdir -p "$own/cgroup"
mount --rbind /sys/fs/cgroup "$own/cgroup"
mount -t sysfs sysfs /sys
mount --move "$own/cgroup" /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf

# Folders that every machine has for itself. /tmp, /usr and /dev are the computer's.
for folder in /etc /opt; do
    mkdir -p "$own$folder" "$own/overlay$folder"
    mount -t overlay -o "lowerdir=$folder,upperdir=$own$folder,workdir=$own/overlay$folder" overlay "$folder"
done
for folder in /var/lib /var/log; do
    mkdir -p "$own$folder"
    mount --bind "$own$folder" "$folder"
done
umount -R /run/netns 2>/dev/null || true # the computer's own namespaces are no business of this machine
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns /run/lock
mount --bind /run/netns /run/netns

# As on a real node: what is mounted later reaches the pods that asked for it.
mount --make-rshared /

echo ready
# Who ignores this signal never has to collect processes that others left behind.
exec env --ignore-signal=CHLD sleep infinity >/dev/null 2>&1
