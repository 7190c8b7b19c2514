#!/bin/sh
# Installs the packages of a directory, runs the node as its unit has it, upgrades it, and takes it out again. All of that happens in a copy of this
# machine's root that is gone afterwards: `cargo xtask package` runs it under `unshare --mount --net --pid --fork --kill-child`.
set -eu

# With the directory: makes the copy, and goes on within.
if [ "$1" != inside ]; then
    copy=/mnt
    mount -t tmpfs tmpfs "$copy"
    mkdir "$copy/upper" "$copy/work" "$copy/machine"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$copy/upper,workdir=$copy/work" "$copy/machine"
    mount -t proc proc "$copy/machine/proc"
    mkdir "$copy/machine/packages"
    cp "$0" "$1"/*.deb "$copy/machine/packages"
    exec chroot "$copy/machine" sh /packages/try.sh inside
fi

unit=/usr/lib/systemd/system/peanut-server.service
[ -e "$unit" ] || unit=/lib/systemd/system/peanut-server.service
of_unit() { sed -n "s/^$1=//p" "$unit"; }
peanut() { command peanut --nodes 127.0.0.1:9999 "$@"; }
start() {
    # Lines of the unit are words of a command.
    as_unit="setpriv --reuid=$(of_unit User) --regid=$(of_unit Group) --clear-groups --no-new-privs env $(of_unit Environment)"
    $as_unit $(of_unit ExecStartPre)
    $as_unit $(of_unit ExecStart) &
    node=$!
    for _ in $(seq 100); do
        if peanut health 2> /dev/null; then return; fi
        kill -0 "$node"
        sleep 0.2
    done
    echo "the node does not serve" >&2
    exit 1
}
stop() {
    kill -TERM "$node"
    wait "$node"
}
is() {
    if [ "$1" != "$2" ]; then
        echo "$3: $1 in place of $2" >&2
        exit 1
    fi
}

ip link set lo up
echo "-- installing"
dpkg --install /packages/*-1_*.deb
is "$(stat -c %U:%G:%a /var/lib/peanut)" peanut:peanut:700 "the data directory"
is "$(stat -c %U:%G:%a /etc/peanut/peanut.toml)" root:peanut:640 "the configuration"
for page in man8/peanut-server.8 man1/peanut.1 man1/peanut-get.1; do
    # With or without .gz.
    zcat --force "/usr/share/man/$page"* | grep -q '^\.TH'
done
for program in peanut peanut-server; do
    bash -c "source /usr/share/bash-completion/completions/$program && complete -p $program" > /dev/null
done

echo "-- starting"
start
peanut set pages home "as it was"
# What an administrator has changed stays.
echo "# changed here" >> /etc/peanut/peanut.toml
stop

echo "-- upgrading"
dpkg --install /packages/*-2_*.deb
is "$(tail -n 1 /etc/peanut/peanut.toml)" "# changed here" "the configuration"
start
is "$(peanut get pages home)" "as it was" "the entry after the upgrade"
stop

echo "-- taking out"
dpkg --remove peanut-server peanut-cli
is "$(ls /usr/bin/peanut* 2> /dev/null || true)" "" "programs that are left"
is "$(ls -d /var/lib/peanut /etc/peanut/peanut.toml)" "$(printf '/etc/peanut/peanut.toml\n/var/lib/peanut')" "what a removal leaves"
dpkg --purge peanut-server
is "$(ls -d /var/lib/peanut /etc/peanut 2> /dev/null || true)" "" "what a purge leaves"
