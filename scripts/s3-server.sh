#!/usr/bin/env bash
# A real S3 server for tests: Ceph's RADOS Gateway with the monitor and the object store it needs, all on 127.0.0.1, all in one folder.
#   s3-server.sh start DIR PORT [ACCESS SECRET [PID]]   makes the server anew in DIR; S3 is on PORT, the monitor on PORT+1 and PORT+2; an account with
#                                                 these keys; it stops by itself when the process PID ends, however it ends
#   s3-server.sh user  DIR NAME ACCESS SECRET     adds an account
#   s3-server.sh quota DIR NAME BYTES             limits what an account may store
#   s3-server.sh kill  DIR [DAEMON...]            kill -9, all three where none is named: client.rgw osd.0 mon.a
#   s3-server.sh again DIR PORT                   starts what does not run
#   s3-server.sh stop  DIR                        kills all and removes DIR
# DIR must be short (paths of sockets in it are limited to 107 bytes). Needs the packages radosgw, ceph-mon, ceph-osd and ceph-common.
set -euo pipefail

action=${1:?what to do: start, user, quota, kill, again or stop}
dir=$(realpath -m "${2:?a folder}")
shift 2
conf=(-c "$dir/ceph.conf")
daemons=(client.rgw osd.0 mon.a)

# A killed daemon may stay as a zombie that kill -0 still finds.
is_running() {
  local pid
  pid=$(cat "$dir/run/$1.pid" 2> /dev/null) || return 1
  [ -n "$pid" ] && grep -q '^State:[[:space:]]*[RSD]' "/proc/$pid/status" 2> /dev/null && grep -qa "$dir/ceph.conf" "/proc/$pid/cmdline"
}

kill_hard() {
  local name
  for name in "$@"; do
    if is_running "$name"; then
      kill -9 "$(cat "$dir/run/$name.pid")" || true
      while is_running "$name"; do sleep 0.02; done
    fi
  done
}

run_all() {
  is_running mon.a || ceph-mon "${conf[@]}" -i a > /dev/null
  is_running osd.0 || ceph-osd "${conf[@]}" -i 0 > /dev/null 2>&1
  is_running client.rgw || timeout 60 radosgw "${conf[@]}" -n client.rgw > /dev/null 2>&1
  for _ in $(seq 600); do
    if (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; then return; fi
    sleep 0.05
  done
  echo "the gateway does not answer on port $1:" >&2
  tail -n 20 "$dir"/run/*.log >&2
  return 1
}

admin() { timeout 30 radosgw-admin "${conf[@]}" "$@" > /dev/null 2> "$dir/run/admin.err" || { cat "$dir/run/admin.err" >&2; return 1; }; }

add_user() { admin user create --uid="$1" --display-name="$1" --access-key="$2" --secret-key="$3"; }

stop_with() {
  setsid bash -c 'while [ -e "/proc/$1" ]; do sleep 1; done; [ ! -e "$2" ] || exec "$3" stop "$2"' watch "$1" "$dir" "$(realpath "$0")" > /dev/null 2>&1 < /dev/null &
}

new_key() { ceph-authtool "$dir/keyring" --gen-key -n "$@" > /dev/null; }

# What differs from Ceph's defaults: one copy of everything; short waits, so that a start takes seconds; and the watch of a killed gateway ends after
# 3 s instead of 30, so that the next one can make buckets. Authentication stays on: without it the gateway does not get through to the store.
write_configuration() {
  cat > "$dir/ceph.conf" << CONF
[global]
fsid = $1
mon host = [v2:127.0.0.1:$(($2 + 1)),v1:127.0.0.1:$(($2 + 2))]
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
run dir = $dir/run
admin socket = $dir/run/\$name.asok
log file = $dir/run/\$name.log
pid file = $dir/run/\$name.pid
keyring = $dir/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 2
osd pool default pgp num = 2
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000

[mon]
mon data = $dir/mon
mon election timeout = 1
paxos propose interval = 0.05
mon data avail warn = 1
mon data avail crit = 1
auth allow insecure global id reclaim = false

[osd]
osd data = $dir/osd
osd objectstore = bluestore
osd client watch timeout = 3
osd memory target = 939524096
bluestore block size = 4294967296
bluestore cache autotune = false
bluestore cache size = 67108864

[client.rgw]
rgw data = $dir/rgw
rgw frontends = beast endpoint=127.0.0.1:$2
rgw thread pool size = 64
rgw override bucket index max shards = 1
objecter tick interval = 1
CONF
}

make_server() {
  local port=$1 cluster osd
  kill_hard "${daemons[@]}"
  rm -rf "$dir"
  mkdir -p "$dir"/{mon,osd,rgw,run}
  cluster=$(cat /proc/sys/kernel/random/uuid)
  osd=$(cat /proc/sys/kernel/random/uuid)
  write_configuration "$cluster" "$port"
  touch "$dir/keyring"
  new_key mon. --cap mon 'allow *'
  new_key client.admin --cap mon 'allow *' --cap osd 'allow *'
  new_key osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
  new_key client.rgw --cap mon 'allow *' --cap osd 'allow *'
  monmaptool --create --fsid "$cluster" --addv a "[v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]" "$dir/monmap" > /dev/null
  ceph-mon "${conf[@]}" --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
  ceph-mon "${conf[@]}" -i a > /dev/null
  timeout 30 ceph "${conf[@]}" osd new "$osd" > /dev/null
  ceph-osd "${conf[@]}" -i 0 --mkfs --osd-uuid "$osd" > /dev/null 2>&1
  run_all "$port"
}

case $action in
  start)
    make_server "${1:?a port}"
    [ $# -lt 3 ] || add_user tester "$2" "$3"
    [ $# -lt 4 ] || stop_with "$4"
    ;;
  user) add_user "$@" ;;
  quota)
    admin quota set --quota-scope=user --uid="$1" --max-size="$2"
    admin quota enable --quota-scope=user --uid="$1"
    ;;
  kill) kill_hard "${@:-${daemons[@]}}" ;;
  again) run_all "${1:?a port}" ;;
  stop)
    kill_hard "${daemons[@]}"
    rm -rf "$dir"
    ;;
  *)
    echo "unknown action $action" >&2
    exit 2
    ;;
esac
