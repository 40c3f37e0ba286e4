"""What the pods of an index with Sentinel run first: a shell script, since the image is that of Redis or Valkey."""

from __future__ import annotations

from typing import Final

START: Final = """\
set -eu
self="$POD_NAME.$INDEX_SERVICE"
master=""
for peer in $INDEX_HOSTS; do
  [ "$peer" = "$self" ] && continue
  answer=$(timeout 2 redis-cli -h "$peer" -p 26379 sentinel get-master-addr-by-name kvcommons 2>/dev/null | head -n 1) || true
  case "$answer" in *.*) master="$answer"; break ;; esac
done
if [ -z "$master" ]; then master="${INDEX_HOSTS%% *}"; fi
if [ "$1" = sentinel ]; then
  for pair in $INDEX_IDS; do
    if [ "${pair%%=*}" = "$self" ]; then id="${pair#*=}"; fi
  done
  sed -e "s/@MASTER@/$master/" -e "s/@SELF@/$self/" -e "s/@ID@/$id/" /etc/kvcommons-index/sentinel.conf > /data/sentinel.conf
  exec redis-server /data/sentinel.conf --sentinel
fi
sed -e "s/@SELF@/$self/" /etc/kvcommons-index/redis.conf > /data/redis.conf
if [ "$master" != "$self" ]; then echo "replicaof $master 6379" >> /data/redis.conf; fi
exec redis-server /data/redis.conf
"""
"""Who is the primary is asked of the sentinels that answer; where none does, all begin with the first pod. A sentinel keeps its
id over restarts: others would count the former one among those whose majority names a primary."""
