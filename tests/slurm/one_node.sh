#!/usr/bin/env bash
# A SLURM of one node for the tests, on Debian, as root: two partitions, of which `high` preempts `debug`.
#   one_node.sh install    the packages, where they are missing      one_node.sh up|down    start and stop
# Nothing is installed where this is not Debian or not root; the tests then are skipped, with this as the reason.
set -euo pipefail

may_install() { [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ]; }

install_packages() {
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return 0
  may_install || { echo "SLURM is not installed: its tests need root on Debian, and are skipped"; return 0; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
}

configure() {
  local name cpus memory
  name=$(hostname -s) cpus=$(nproc)
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  install -d -o munge -g munge -m 755 /run/munge
  install -d -o munge -g munge -m 700 /etc/munge /var/lib/munge /var/log/munge
  if [ ! -s /etc/munge/munge.key ]; then
    dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
    chown munge:munge /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
  fi
  install -d -m 755 /etc/slurm /var/spool/slurmctld /var/spool/slurmd /var/log/slurm
  cat >/etc/slurm/slurm.conf <<CONF
ClusterName=diffprobe
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=5
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$name NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=$name Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=$name MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

up() {
  configure
  runuser -u munge -- /usr/sbin/munged
  munge -n | unmunge >/dev/null
  slurmctld
  slurmd
  for _ in $(seq 60); do
    [ "$(sinfo -h -p debug -o %t 2>/dev/null)" = idle ] && return 0
    sleep 0.5
  done
  echo "the node did not become idle" >&2
  tail -n 20 /var/log/slurm/slurmd.log /var/log/slurm/slurmctld.log >&2
  return 1
}

down() {
  local file
  for file in /run/slurmd.pid /run/slurmctld.pid /run/munge/munged.pid; do
    [ ! -s "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
  done
}

case "${1:-}" in
  install) install_packages ;;
  up) up ;;
  down) down ;;
  *) sed -n 2,4p "$0"; exit 2 ;;
esac
