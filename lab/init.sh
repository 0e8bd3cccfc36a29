#!/bin/busybox sh
# First program of the lab, from the initramfs: builds a root out of the machine's own file system, then hands over to
# inside.py. Any failure ends this process, hence the kernel (panic=-1), hence QEMU, which `lab up` sees.
#
# The root is a small tmpfs in which the machine's top-level directories are mounted read-only, one by one: that way
# mount points such as /scratch need not exist on the machine.
set -eu
/bin/busybox mkdir -p /proc /sys /dev /machine /new
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1 # the initramfs has no /dev/console
mount -t proc proc /proc
mount -t sysfs sys /sys
echo "wrenn-lab: initramfs runs" >/dev/kmsg
while read -r module; do
    insmod "/modules/$module"
done </modules.list

echo "wrenn-lab: modules are loaded" >/dev/kmsg
options=trans=virtio,version=9p2000.L,msize=524288
# Nothing is cached but /usr: what the machine rebuilds while the lab is up must be seen.
mount -t 9p -o "ro,cache=none,$options" root /machine
mount -t 9p -o "ro,cache=loose,$options" usr /machine/usr
mount -t tmpfs -o mode=755 root /new

for path in /machine/*; do
    name=${path##*/}
    case "$name" in
    dev | proc | run | scratch | scratch-ext4 | sys | tmp | lost+found) continue ;;
    esac
    if [ -L "$path" ]; then
        cp -a "$path" "/new/$name"
    elif [ -d "$path" ]; then
        mkdir "/new/$name"
        mount -o rbind "$path" "/new/$name"
    fi
done
cd /new
mkdir -p dev proc run scratch scratch-ext4 sys tmp
mount -t tmpfs -o mode=755 run run
mkdir run/wrenn-lab run/machine
cp -a /lab/* run/wrenn-lab/
mount -o move /machine run/machine
umount /proc /sys
mount -o move /dev dev
exec switch_root /new /usr/bin/python3 -I /run/wrenn-lab/inside.py
