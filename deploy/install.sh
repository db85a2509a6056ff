#!/bin/bash
# Installs streamlstm as a service of systemd and starts it. Run as root; run again to repair, to
# change, or, from a newer checkout, to upgrade: it brings about the same whatever was there before.
set -euo pipefail

usage() {
    cat <<'END'
usage: install.sh --model FILE | --demo | (nothing, where a model is there already)
       install.sh --uninstall [--purge]

  --model FILE      the model to serve (`streamlstm fit`, `streamlstm import`)
  --demo            without one yet: fit a small one to bundled data, electricity demand
  --config FILE     the configuration; else one with all defaults, where there is none
  --instance NAME   streamlstm@NAME, with /etc/streamlstm/NAME.toml and state of its own
  --gpu             open the GPU to it, and install what CUDA needs
  --prometheus      have the Prometheus of this machine scrape it, and watch it by our rules
  --python COMMAND  Python 3.11 or newer, readable by all (default: python3)
  --package SPEC    what pip is to install (default: the checkout that this script lies in)

  --uninstall       stop and remove the service, all instances, the program and compiled code;
                    with --instance: that instance alone. Configuration, models and state stay,
  --purge           unless this is given too.
END
}

here=$(dirname "$(readlink -f "$0")")
program=/opt/streamlstm
begun=$program.begun # there while the program is being installed
etc=/etc/streamlstm
lib=/usr/local/lib
command=/usr/local/bin/streamlstm
declare -A completions=(
    [bash]=/usr/local/share/bash-completion/completions/streamlstm
    [zsh]=/usr/local/share/zsh/site-functions/_streamlstm
    [fish]=/etc/fish/completions/streamlstm.fish # of /usr/local it reads nothing
)
scrapes=/etc/prometheus/prometheus.yml
rules=/etc/prometheus/streamlstm.rules.yml

fail() {
    echo "install.sh: $1" >&2
    exit "${2:-1}"
}

model='' demo='' config='' instance='' gpu='' prometheus='' python=python3 package=$(dirname "$here")
uninstall='' purge=''
while [ $# -gt 0 ]; do
    case $1 in
    --model | --config | --instance | --python | --package)
        [ -n "${2:-}" ] || fail "$1 wants a value; see install.sh --help" 2
        declare "${1#--}=$2"
        shift
        ;;
    --demo | --gpu | --prometheus | --uninstall | --purge) declare "${1#--}=yes" ;;
    -h | --help)
        usage
        exit
        ;;
    *) fail "$1: unknown; see install.sh --help" 2 ;;
    esac
    shift
done
[ -z "$model" ] || [ -z "$demo" ] || fail "--model or --demo, not both" 2
[ -z "$purge" ] || [ -n "$uninstall" ] || fail "--purge goes with --uninstall" 2
[[ $instance =~ ^([A-Za-z0-9][A-Za-z0-9_-]*)?$ ]] ||
    fail "--instance $instance: letters, digits, - and _ only, and no - first" 2
case $instance in
streamlstm | checkpoint) fail "--instance $instance: a file of streamlstm.service has that name" 2 ;;
esac
[ -z "$prometheus" ] || [ -z "$instance" ] ||
    fail "--prometheus is for streamlstm.service; add the instance's port in $scrapes" 2

unit=streamlstm${instance:+@$instance}
toml=$etc/${instance:-streamlstm}.toml
below=streamlstm${instance:+/$instance}
state=/var/lib/$below
cache=/var/cache/$below

[ "$(id -u)" = 0 ] || fail "run it as root: sudo $0"
[ -d /run/systemd/system ] || fail "systemd does not run here; see README.md to run it by hand"

if [ -n "$uninstall" ]; then
    if [ -n "$instance" ]; then
        systemctl disable --quiet --now "$unit.service" 2>/dev/null || true
        rm -rf "$cache"
        [ -z "$purge" ] || rm -rf "$state" "$toml"
    else
        if [ -f $lib/systemd/system/streamlstm.service ]; then
            systemctl stop streamlstm.service 'streamlstm@*.service'
            systemctl disable --quiet streamlstm.service streamlstm@.service
        fi
        rm -f $lib/systemd/system/streamlstm{,@}.service.d/gpu.conf
        rmdir --ignore-fail-on-non-empty $lib/systemd/system/streamlstm{,@}.service.d 2>/dev/null ||
            true
        rm -f $lib/systemd/system/streamlstm{,@}.service \
            $lib/{sysusers,tmpfiles}.d/streamlstm.conf
        [ "$(readlink $command)" != $program/bin/streamlstm ] || rm $command
        rm -f "${completions[@]}"
        rm -rf $program $begun /var/cache/streamlstm
        if [ -n "$purge" ]; then
            rm -rf /var/lib/streamlstm $etc
            ! id streamlstm >/dev/null 2>&1 || userdel streamlstm
            if [ -f $rules ]; then
                rm $rules
                systemctl try-reload-or-restart prometheus.service
                echo "stays, since it is part of $scrapes: the job streamlstm"
            fi
        fi
    fi
    systemctl daemon-reload
    systemctl reset-failed 'streamlstm*.service'
    [ -n "$purge" ] || [ ! -d $etc ] || echo "stays, until --uninstall --purge: $etc, /var/lib/streamlstm, their user"
    exit
fi

# --- what must be there, before anything is changed
for file in "$model" "$config"; do
    [ -z "$file" ] || { [ -f "$file" ] && [ -r "$file" ]; } || fail "$file: cannot be read"
done
command -v "$python" >/dev/null || fail "no $python: apt-get install python3-venv, or --python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is too old: Python 3.11 or newer is needed (--python)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python makes no virtual environments: apt-get install python3-venv"
target=$("$python" - "${config:-$toml}" <<'END'
import os, sys, tomllib
try:
    given = tomllib.load(open(sys.argv[1], "rb")) if os.path.exists(sys.argv[1]) else {}
except (ValueError, OSError) as error:
    sys.exit(f"install.sh: {sys.argv[1]}: {error}")
print(given.get("model", ""))
END
)
target=${target:-$state/model.safetensors}
[ -n "$model$demo" ] || [ -f "$target" ] ||
    fail "no model at $target: give it --model FILE, or --demo to begin with" 2
[ -z "$prometheus" ] || [ -f $scrapes ] || fail "no $scrapes: apt-get install prometheus"

# --- the program
umask 022 # the service's user reads it
# none yet, or of a Python that is gone, or left by an installation that did not come to its end
if [ -e $begun ] || ! $program/bin/python -c 'import pip' 2>/dev/null; then
    touch $begun
    "$python" -m venv --clear $program
fi
touch $begun
[ -z "$gpu" ] || package="$package[cuda]"
$program/bin/pip install --quiet --disable-pip-version-check "$package" || {
    rm $begun # pip has put back what was there
    fail "pip could not install $package, see above; is the network there?"
}
rm $begun
ln -sf $program/bin/streamlstm $command

# --- user, folders, units
install -D -m 644 "$here/sysusers.conf" $lib/sysusers.d/streamlstm.conf
install -D -m 644 "$here/tmpfiles.conf" $lib/tmpfiles.d/streamlstm.conf
systemd-sysusers $lib/sysusers.d/streamlstm.conf
systemd-tmpfiles --create $lib/tmpfiles.d/streamlstm.conf
install -d -m 700 -o streamlstm -g streamlstm "$state" "$cache"
install -D -m 644 -t $lib/systemd/system "$here"/streamlstm{,@}.service
if [ -n "$gpu" ]; then
    for each in streamlstm streamlstm@; do
        install -D -m 644 -t "$lib/systemd/system/$each.service.d" "$here/gpu.conf"
    done
fi
systemctl daemon-reload
streamlstm() {
    runuser -u streamlstm -- \
        env --chdir=/ NUMBA_CACHE_DIR="$cache" nice $program/bin/streamlstm "$@"
}
for shell in "${!completions[@]}"; do
    mkdir -p "${completions[$shell]%/*}"
    streamlstm completion "$shell" >"${completions[$shell]}"
done

# --- configuration and model: judged, and compiled for, while the one that serves goes on
toml_now=$toml target_now=$target
trap 'rm -f "$toml.new" "$target.new"' EXIT
if [ -n "$config" ] || [ ! -f "$toml" ]; then
    toml_now=$toml.new
    if [ -n "$config" ]; then
        cat -- "$config"
    else
        sed "s|/var/lib/streamlstm/|$state/|" "$here/streamlstm.toml"
    fi >"$toml_now"
fi
chgrp streamlstm "$toml_now"
chmod 640 "$toml_now" # there may be hashes of passwords in it
if [ -n "$model" ]; then
    target_now=$target.new
    install -m 600 -o streamlstm -g streamlstm -- "$model" "$target_now"
elif [ -n "$demo" ] && [ ! -f "$target" ]; then
    echo "fitting a model to half-hourly electricity demand: a minute, or two"
    streamlstm fit electricity --horizon 48 --updates 200 --quiet --out "$target"
fi
echo "compiling, where that was not done before: a minute, or two"
streamlstm check --compile --config "$toml_now" --set model="$target_now" >/dev/null ||
    fail "$unit cannot be run so, see above; its configuration and model are as they were"
[ "$toml_now" = "$toml" ] || mv "$toml_now" "$toml"
[ "$target_now" = "$target" ] || mv "$target_now" "$target"

# --- run
systemctl enable --quiet "$unit"
systemctl restart "$unit" || {
    journalctl --sync # what it said last may still be on its way
    journalctl --unit "$unit" --lines 20 --output cat --no-pager >&2
    fail "$unit does not start, see above; it is tried again until $toml is put right"
}
if [ -n "$prometheus" ]; then
    install -m 644 "$here/prometheus/streamlstm.rules.yml" $rules
    if ! grep -q 'job_name: streamlstm' $scrapes; then # its last part becomes that of what is there
        sed '/^rule_files:/a\  - streamlstm.rules.yml' $scrapes >$scrapes.new
        echo >>$scrapes.new
        sed -n '/job_name: streamlstm/,$p' "$here/prometheus/prometheus.yml" >>$scrapes.new
        { grep -q streamlstm.rules.yml $scrapes.new && promtool check config $scrapes.new >/dev/null; } || {
            rm $scrapes.new
            fail "$unit runs, but $scrapes has to be extended by hand: see README.md"
        }
        mv $scrapes.new $scrapes
    fi
    systemctl reload-or-restart prometheus.service
fi
echo "$unit: $(systemctl show --value --property StatusText "$unit")"
echo "next: streamlstm watch; streamlstm publish YOUR.csv; journalctl -fu $unit; edit $toml"
