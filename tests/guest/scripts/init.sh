#!/bin/bash
# Init of a lab guest: network, modules, identity, then the agent that runs what the host asks for.
export PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/shm /dev/pts
ln -s /proc/self/fd /dev/fd
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t configfs configfs /sys/kernel/config 2>/dev/null
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share /share
modprobe -a virtio_net virtio_console virtio_rng nvme_tcp

argument() { sed -n "s/.*\blab\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

# The host's loopback addresses keep their names here: what a discovery log says can be followed.
hostname "$(argument name)"
ip link set lo up
for _ in $(seq 100); do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done
echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add 127.0.0.0/8 via 10.0.2.2 dev eth0 src 10.0.2.15 table 100
ip rule add pref 10 lookup local
ip rule add pref 5 to "$(argument loopback)" lookup 100
ip rule del pref 0

mkdir -p /etc/nvme
argument hostid > /etc/nvme/hostid
echo "nqn.2014-08.org.nvmexpress:uuid:$(argument hostid)" > /etc/nvme/hostnqn

for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name" 2>/dev/null)" = lab.agent ] && device=/dev/${port##*/}
done
[ -n "$device" ] || { echo "lab: no agent port"; sleep 1; poweroff -f; }
exec 3<>"$device"

# A request is a line `run ID` or `kill ID`; the script of a job is /share/jobs/ID/script, its outputs
# go beside it, and when it has ended the reply is a line `ID STATUS`. Jobs run in parallel.
set -m
cd /tmp
run() {
  local job=/share/jobs/$1
  bash "$job/script" > "$job/out" 2> "$job/err" < /dev/null 3>&-
  echo "$1 $?" >&3
}
echo "lab ready" >&3
while :; do
  read -r verb id <&3
  case $verb in
    run) run "$id" & groups[id]=$! ;;
    kill) kill -KILL -- "-${groups[id]}" && echo "$id 137" >&3 ;;
    *) sleep 0.2 ;;
  esac
done
