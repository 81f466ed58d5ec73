#!/usr/bin/env bash
# A SLURM of one node for the tests, on Debian, as root: two partitions, of which `high` preempts `debug`. It has a
# configuration, ports and folders of its own, so that a SLURM that the machine may have is left alone.
#   one_node.sh install       the packages, where they are missing
#   one_node.sh up FOLDER     start it; everything but munge is in FOLDER; then: export SLURM_CONF=FOLDER/slurm.conf
#   one_node.sh down FOLDER   stop it
# Nothing is installed where this is not Debian, not root, or where there is no mirror; the tests then are skipped, with
# this as the reason.
set -euo pipefail

install_packages() {
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return 0
  if [ "$(id -u)" != 0 ] || [ ! -e /etc/debian_version ]; then
    echo "SLURM is not installed: its tests need root on Debian, and are skipped"
    return 0
  fi
  apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge ||
    echo "the packages of SLURM could not be installed: its tests are skipped"
}

start_munge() {
  munge -n 2>/dev/null | unmunge >/dev/null 2>&1 && return 0
  install -d -o munge -g munge -m 755 /run/munge
  install -d -o munge -g munge -m 700 /etc/munge /var/lib/munge /var/log/munge
  if [ ! -s /etc/munge/munge.key ]; then
    dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
    chown munge:munge /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
  fi
  runuser -u munge -- /usr/sbin/munged
  munge -n | unmunge >/dev/null
}

configure() { # FOLDER
  local folder=$1 name memory
  name=$(hostname -s)
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  mkdir -p "$folder/state" "$folder/spool"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=diffprobe
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
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
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$name NodeAddr=127.0.0.1 CPUs=2 RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=$name Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=$name MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

up() { # FOLDER
  configure "$1"
  start_munge
  export SLURM_CONF=$1/slurm.conf
  slurmctld
  slurmd
  for _ in $(seq 60); do
    [ -s "$1/slurmd.pid" ] && [ "$(sinfo -h -p debug -o %t 2>/dev/null)" = idle ] && return 0
    sleep 0.5
  done
  echo "the node did not become idle (does a slurmd of an interrupted run still have the port? pkill slurmd slurmctld)" >&2
  tail -n 20 "$1/slurmd.log" "$1/slurmctld.log" >&2
  return 1
}

down() { # FOLDER
  local file
  for file in "$1/slurmd.pid" "$1/slurmctld.pid"; do
    [ ! -s "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
  done
}

case "${1:-}" in
  install) install_packages ;;
  up) up "$2" ;;
  down) down "$2" ;;
  *) sed -n 2,8p "$0"; exit 2 ;;
esac
