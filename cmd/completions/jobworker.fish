# Completion of jobworker for fish, with the ids of live jobs.

function __jobworker_verb
    set -l skip no
    for word in (commandline -opc)[2..]
        if test $skip = yes
            set skip no
        else if contains -- $word -u -h --profile --host --certs
            set skip yes
        else if not string match -q -- '-*' $word
            echo $word
            return
        end
    end
end

function __jobworker_is
    contains -- (__jobworker_verb) $argv
end

function __jobworker_no_verb
    test -z (__jobworker_verb)
end

function __jobworker_ids
    set -l words (commandline -opc)
    set -l flags
    for i in (seq 2 (count $words))
        if contains -- $words[$i] -u -h --profile --host --certs; and set -q words[(math $i + 1)]
            set -a flags $words[$i] $words[(math $i + 1)]
        end
    end
    echo @last
    timeout 2 jobworker $flags --no-reconnect list --ids $argv -n 100 2>/dev/null
end

complete -c jobworker -f
complete -c jobworker -s u -l profile -x -d 'Whose certificate, or which profile'
complete -c jobworker -s h -l host -x -a '(__fish_print_hostnames)' -d 'The server'
complete -c jobworker -l certs -x -a '(__fish_complete_directories)' -d 'Where the certificates are'
complete -c jobworker -l json -d 'Answers as JSON'
complete -c jobworker -l no-reconnect -d 'Fail when the connection is lost'
complete -c jobworker -l help -d 'Print help'
complete -c jobworker -n __jobworker_no_verb -l version -d 'Print the version'

complete -c jobworker -n __jobworker_no_verb -a start -d 'Start a job and show its output'
complete -c jobworker -n __jobworker_no_verb -a stop -d 'Stop jobs and all their processes'
complete -c jobworker -n __jobworker_no_verb -a query -d 'Show the output of a job'
complete -c jobworker -n __jobworker_no_verb -a list -d 'Your jobs'
complete -c jobworker -n __jobworker_no_verb -a status -d 'All that is known of jobs'
complete -c jobworker -n __jobworker_no_verb -a wait -d 'Wait until jobs have ended'
complete -c jobworker -n __jobworker_no_verb -a signal -d 'Send a signal to jobs'
complete -c jobworker -n __jobworker_no_verb -a rm -d 'Forget ended jobs'
complete -c jobworker -n __jobworker_no_verb -a whoami -d 'Who the server takes you for'
complete -c jobworker -n __jobworker_no_verb -a version -d 'Versions of client and server'
complete -c jobworker -n __jobworker_no_verb -a config -d 'Each setting and where it comes from'
complete -c jobworker -n __jobworker_no_verb -a completion -d 'Print a completion script'

complete -c jobworker -n '__jobworker_is start' -s d -l detach -d 'Print the id and leave the job running'
complete -c jobworker -n '__jobworker_is start' -l stdin -d 'Send standard input'
complete -c jobworker -n '__jobworker_is start' -l env -x -d 'Add to the environment'
complete -c jobworker -n '__jobworker_is start' -l cwd -x -d 'Where the job runs'
complete -c jobworker -n '__jobworker_is start' -l timeout -x -d 'Stop it after so long'
complete -c jobworker -n '__jobworker_is start' -l cpu -x -d 'CPU'
complete -c jobworker -n '__jobworker_is start' -l memory -x -d 'Memory'
complete -c jobworker -n '__jobworker_is start' -l pids -x -d 'Processes'
complete -c jobworker -n '__jobworker_is start' -l io-read -x -d 'Read a second'
complete -c jobworker -n '__jobworker_is start' -l io-write -x -d 'Written a second'
complete -c jobworker -n '__jobworker_is start' -l on-disconnect -x -a 'keep stop' -d 'When nobody follows'
complete -c jobworker -n '__jobworker_is start' -l lease -x -d 'After so long'
complete -c jobworker -n '__jobworker_is start list' -l label -x -d 'A label'
complete -c jobworker -n '__jobworker_is stop' -l signal -x -a 'HUP INT QUIT TERM KILL USR1 USR2' -d 'What is sent first'
complete -c jobworker -n '__jobworker_is stop' -l grace -x -d 'From that to SIGKILL'
complete -c jobworker -n '__jobworker_is stop' -l now -d 'SIGKILL at once'
complete -c jobworker -n '__jobworker_is query' -l from -x -d 'Begin at this byte'
complete -c jobworker -n '__jobworker_is query' -l tail -x -d 'Lines before the end'
complete -c jobworker -n '__jobworker_is query' -l no-follow -d 'Only what is there'
complete -c jobworker -n '__jobworker_is query' -l stdout -d 'Only standard output'
complete -c jobworker -n '__jobworker_is query' -l stderr -d 'Only standard error'
complete -c jobworker -n '__jobworker_is query' -l timestamps -d 'When each line was read'
complete -c jobworker -n '__jobworker_is list' -s q -l ids -d 'Only the ids'
complete -c jobworker -n '__jobworker_is list' -l live -d 'Jobs that have not ended'
complete -c jobworker -n '__jobworker_is list' -s n -x -d 'At most so many'
complete -c jobworker -n '__jobworker_is wait' -l any -d 'Until one has ended'
complete -c jobworker -n '__jobworker_is signal' -a 'HUP INT QUIT TERM KILL USR1 USR2 STOP CONT'
complete -c jobworker -n '__jobworker_is completion' -a 'bash zsh fish'
complete -c jobworker -n '__jobworker_is stop wait signal' -a '(__jobworker_ids --live)'
complete -c jobworker -n '__jobworker_is query status rm' -a '(__jobworker_ids)'
