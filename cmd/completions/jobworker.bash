# Completion of jobworker for bash, with the ids of live jobs.

_jobworker() {
  local globals='--profile --host --certs --json --no-reconnect --help'
  local words=("${COMP_WORDS[@]:0:COMP_CWORD}") current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
  local verb='' flags=() i
  for ((i = 1; i < ${#words[@]}; i++)); do
    case ${words[i]} in
      -u | -h | --profile | --host | --certs) flags+=("${words[i]}" "${words[i+1]-}"); i=$((i + 1)) ;;
      -*) ;;
      *) verb=${words[i]}; break ;;
    esac
  done
  COMPREPLY=()
  case $previous in
    --certs) mapfile -t COMPREPLY < <(compgen -d -- "$current"); return ;;
    --on-disconnect) mapfile -t COMPREPLY < <(compgen -W 'keep stop' -- "$current"); return ;;
    --signal) mapfile -t COMPREPLY < <(compgen -W 'HUP INT QUIT TERM KILL USR1 USR2' -- "$current"); return ;;
  esac
  local choices=$globals
  case $verb in
    '') choices+=' --version start stop query list status wait signal rm whoami version config completion' ;;
    start)
      choices+=' --detach --stdin --env --cwd --timeout --cpu --memory --pids --io-read --io-write --label'
      choices+=' --on-disconnect --lease'
      [[ $current == -* ]] || choices=$(compgen -c -- "$current")
      ;;
    stop) choices+=' --signal --grace --now' ;;
    query) choices+=' --from --tail --no-follow --stdout --stderr --timestamps' ;;
    list) choices+=' --ids --live --label -n' ;;
    wait) choices+=' --any' ;;
    signal) [[ $previous != signal ]] || choices='HUP INT QUIT TERM KILL USR1 USR2 STOP CONT' ;;
    completion) choices='bash zsh fish' ;;
  esac
  local live=()
  case $verb in
    stop | signal | wait) live=(--live) ;;&
    stop | query | status | wait | signal | rm)
      if [[ $current != -* && $previous != signal ]]; then
        choices="@last $(timeout 2 "${COMP_WORDS[0]}" "${flags[@]}" --no-reconnect list --ids "${live[@]}" -n 100 2>/dev/null)"
      fi
      ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$current")
}

complete -F _jobworker jobworker
