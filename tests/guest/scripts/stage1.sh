#!/bin/busybox sh
# First process of a lab guest, in the initramfs: mounts the guest root that the host shares
# read-only over 9p, lays a tmpfs over it and hands over to /lab/init.
B=/bin/busybox
fail() { echo "lab: stage1: $1"; $B sleep 1; $B poweroff -f; }
$B mkdir -p /proc /sys /dev /lower /rw /new
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev
for module in /modules/*.ko; do $B insmod "$module" || fail "insmod $module"; done
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /lower \
  || fail "no root over 9p"
$B mount -t tmpfs -o size=75% tmpfs /rw
$B mkdir -p /rw/upper /rw/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /new \
  || fail "no overlay"
$B mkdir -p /new/proc /new/sys /new/dev /new/run /new/tmp /new/share
$B mount --move /proc /new/proc
$B mount --move /sys /new/sys
$B mount --move /dev /new/dev
exec $B switch_root /new /lab/init
