# Posts the environment to a socket, as JSON: what an administrator would write.
#   bash hook.sh SOCKET
json() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  printf -v quoted '"%s"' "$text"
}
env=
while IFS= read -r -d '' variable; do
  json "${variable%%=*}"; env+=,$quoted
  json "${variable#*=}"; env+=:$quoted
done </proc/self/environ
read -r id </proc/sys/kernel/random/uuid
printf -v time '%(%Y-%m-%dT%H:%M:%SZ)T' -1
printf '{"id":"%s","time":"%s","node":"n1","env":{%s}}\n' "${id//-/}" "$time" "${env:1}" |
  curl --silent --fail --max-time 1 --output /dev/null --unix-socket "$1" \
    --header 'Content-Type: application/x-ndjson' --data-binary @- http://localhost/v1/ganeti/reports
