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
  --python COMMAND  Python 3.11 or newer, readable by all (default: python3)
  --package SPEC    what pip is to install (default: the checkout that this script lies in)

  --uninstall       stop and remove the service, all instances, the program and compiled code;
                    with --instance: that instance alone. Configuration, models and state stay,
  --purge           unless this is given too.
END
}

here=$(dirname "$(readlink -f "$0")")
program=/opt/streamlstm
etc=/etc/streamlstm
lib=/usr/local/lib
command=/usr/local/bin/streamlstm
declare -A completions=(
    [bash]=/usr/local/share/bash-completion/completions/streamlstm
    [zsh]=/usr/local/share/zsh/site-functions/_streamlstm
    [fish]=/etc/fish/completions/streamlstm.fish
)

fail() {
    echo "install.sh: $1" >&2
    exit "${2:-1}"
}

model='' demo='' config='' instance='' gpu='' python=python3 package=$(dirname "$here")
uninstall='' purge=''
while [ $# -gt 0 ]; do
    case $1 in
    --model | --config | --instance | --python | --package)
        [ -n "${2:-}" ] || fail "$1 wants a value; see install.sh --help" 2
        declare "${1#--}=$2"
        shift
        ;;
    --demo | --gpu | --uninstall | --purge) declare "${1#--}=yes" ;;
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
[[ $instance =~ ^[A-Za-z0-9_-]*$ ]] || fail "--instance $instance: letters, digits, - and _ only" 2

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
            $lib/{sysusers,tmpfiles}.d/streamlstm.conf "${completions[@]}"
        [ "$(readlink $command)" != $program/bin/streamlstm ] || rm $command
        rm -rf $program /var/cache/streamlstm
        if [ -n "$purge" ]; then
            rm -rf /var/lib/streamlstm $etc
            ! id streamlstm >/dev/null 2>&1 || userdel streamlstm
        fi
    fi
    systemctl daemon-reload
    systemctl reset-failed 'streamlstm*.service'
    [ -n "$purge" ] || echo "stays, until --uninstall --purge: $etc, /var/lib/streamlstm, their user"
    exit
fi

# --- what must be there, before anything is changed
at() { [ ! -f "$1" ] || sed -n 's/^model *= *"\(.*\)"/\1/p' "$1"; }
target=$(at "${config:-$toml}")
target=${target:-$state/model.safetensors}
for file in "$model" "$config"; do
    [ -z "$file" ] || [ -r "$file" ] || fail "$file: cannot be read"
done
[ -n "$model$demo" ] || [ -f "$target" ] ||
    fail "no model at $target: give it --model FILE, or --demo to begin with" 2
command -v "$python" >/dev/null || fail "no $python: apt-get install python3-venv, or --python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is too old: Python 3.11 or newer is needed (--python)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python makes no virtual environments: apt-get install python3-venv"

# --- the program
umask 022 # the service's user reads it
if ! $program/bin/python -c 'import pip' 2>/dev/null; then # none yet, or of a Python that is gone
    "$python" -m venv --clear $program
fi
[ -z "$gpu" ] || package="$package[cuda]"
$program/bin/pip install --quiet --disable-pip-version-check "$package" ||
    fail "pip could not install $package, see above; is the network there?"
ln -sf $program/bin/streamlstm $command
for shell in "${!completions[@]}"; do
    mkdir -p "$(dirname "${completions[$shell]}")"
    $command completion "$shell" >"${completions[$shell]}"
done

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

# --- configuration and model
if [ -n "$config" ] || [ ! -f "$toml" ]; then
    if [ -n "$config" ]; then
        cat "$config"
    else
        sed "s|/var/lib/streamlstm/|$state/|" "$here/streamlstm.toml"
    fi >"$toml.new"
    chgrp streamlstm "$toml.new"
    chmod 640 "$toml.new" # there may be hashes of passwords in it
    mv "$toml.new" "$toml"
fi
if [ -n "$model" ]; then
    install -m 600 -o streamlstm -g streamlstm "$model" "$target.new"
    mv "$target.new" "$target"
elif [ -n "$demo" ] && [ ! -f "$target" ]; then
    echo "fitting a model to half-hourly electricity demand: a minute, or two"
    runuser -u streamlstm -- env NUMBA_CACHE_DIR="$cache" \
        $program/bin/streamlstm fit electricity --horizon 48 --updates 200 --quiet --out "$target"
fi

# --- run
if systemctl is-active --quiet "$unit"; then
    echo "compiling for a minute, or two; $unit goes on meanwhile"
    runuser -u streamlstm -- env NUMBA_CACHE_DIR="$cache" \
        $program/bin/streamlstm check --compile --config "$toml" >/dev/null ||
        fail "$unit goes on as it was, and would not start again until $toml is put right"
    echo "starting $unit anew"
else
    echo "starting $unit; the first start compiles for a minute, or two"
fi
systemctl enable --quiet "$unit"
systemctl restart "$unit" || {
    journalctl --sync # what it said last may still be on its way
    journalctl --unit "$unit" --lines 20 --output cat --no-pager >&2
    fail "$unit does not start, see above; it is tried again until $toml is put right"
}
echo "$unit: $(systemctl show --value --property StatusText "$unit")"
echo "next: streamlstm watch; streamlstm publish YOUR.csv; journalctl -fu $unit; edit $toml"
