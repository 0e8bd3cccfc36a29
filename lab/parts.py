"""The lab's parts: Debian's kernel and a static busybox, fetched once; the initramfs, made at every boot.

Packages come by `apt-get download`, which checks them against the signed index, and are unpacked, never installed. A
part appears under its final name only when complete, and the kernel's checksum is compared at every boot.
"""

import glob
import hashlib
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile

from paths import BUSYBOX, HOME, KERNELS, LAB, LabError, run

# 9p to overlay: the machine's files; dm, loop, xfs, ext4: root disks; nft_*, tun, veth: NAT for sandboxes. All of them
# come in the initramfs: read one by one over 9p they would double the boot time. crc32c_generic is what libcrc32c asks
# for by an alias, which modules.dep does not know.
MODULES = [
    "virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_blk", "virtio_net", "virtio_rng",
    "crc32c_generic", "xfs", "ext4", "loop", "dm_mod", "dm_snapshot", "kvm_amd", "tun", "veth", "bridge", "nf_tables",
    "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct", "nft_compat",
]  # fmt: skip


def fetch():
    """Gets what is missing; answers the lines that say what was done."""
    os.makedirs(KERNELS, mode=0o755, exist_ok=True)
    done = []
    if not os.path.exists(BUSYBOX):
        fetch_busybox()
        done.append("busybox-static")
    if not kernels():
        done.append(fetch_kernel())
    kernel()
    return done


def kernels():
    return sorted(glob.glob(f"{KERNELS}/*/manifest.json"))


def kernel():
    """The cached kernel: `(vmlinux, modules root, version)`."""
    found = kernels()
    if not found or not os.path.exists(BUSYBOX):
        raise LabError(f"the lab's kernel is not in {HOME}; run `make setup`")
    root = os.path.dirname(found[-1])
    with open(found[-1], encoding="utf-8") as file:
        manifest = json.load(file)
    vmlinux = f"{root}/vmlinux"
    if not os.path.exists(vmlinux) or sha256(vmlinux) != manifest["vmlinux_sha256"]:
        raise LabError(f"{vmlinux} is damaged; remove {root} and run `make setup`")
    return vmlinux, root, manifest["version"]


def fetch_kernel():
    shown = run("apt-cache", "show", "--no-all-versions", "linux-image-amd64", what="finding Debian's kernel")
    found = re.search(r"^Depends: .*?\b(linux-image-(\d\S+))", shown, re.M)
    if not found:
        raise LabError("linux-image-amd64 names no kernel package; run `apt-get update`, then `make setup`")
    package, version = found.groups()
    with tempfile.TemporaryDirectory(dir=KERNELS, prefix=".part-") as part:
        unpack(package, part)
        run("depmod", "-b", part, version, what="indexing the kernel's modules")
        decompress(f"{part}/boot/vmlinuz-{version}", f"{part}/vmlinux")
        with open(f"{part}/manifest.json", "w", encoding="utf-8") as file:
            json.dump({"version": version, "vmlinux_sha256": sha256(f"{part}/vmlinux")}, file)
        os.chmod(part, 0o755)
        final = f"{KERNELS}/{version}"
        shutil.rmtree(final, ignore_errors=True)
        os.rename(part, final)
        os.mkdir(part)  # the context manager wants something to remove
    return package


def decompress(vmlinuz, vmlinux):
    """Takes the ELF kernel out of a bzImage: decompressing itself in emulation costs the kernel six seconds a boot.

    Offsets are those of the Linux x86 boot protocol: setup_sects, payload_offset, payload_length.
    """
    with open(vmlinuz, "rb") as file:
        image = file.read()
    setup = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    try:
        kernel_elf = lzma.LZMADecompressor().decompress(image[setup + offset :][:length])
    except lzma.LZMAError as error:
        raise LabError(f"{vmlinuz} is not an xz-compressed kernel: {error}") from None
    with open(vmlinux, "wb") as file:
        file.write(kernel_elf)


def fetch_busybox():
    with tempfile.TemporaryDirectory(dir=HOME, prefix=".part-") as part:
        unpack("busybox-static", part)
        os.rename(next(p for p in (f"{part}/bin/busybox", f"{part}/usr/bin/busybox") if os.path.exists(p)), BUSYBOX)


def unpack(package, target):
    with tempfile.TemporaryDirectory(dir=HOME, prefix=".deb-") as place:
        # As root apt drops to a user that may not write here; there is nothing to protect in a download.
        download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
        run(*download, what=f"fetching {package}", cwd=place)
        (deb,) = glob.glob(f"{place}/*.deb")
        run("dpkg-deb", "-x", deb, target, what=f"unpacking {package}")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def module_files(root, version, names):
    """The files of `names` and all they depend on, in an order in which they load."""
    base = f"{root}/lib/modules/{version}"
    needs = {}
    with open(f"{base}/modules.dep", encoding="utf-8") as file:
        for line in file:
            path, _, rest = line.partition(":")
            needs[module_name(path)] = [path, *reversed(rest.split())]
    with open(f"{base}/modules.builtin", encoding="utf-8") as file:
        builtin = {module_name(line.strip()) for line in file}
    ordered = []
    for name in names:
        if name in builtin:
            continue
        if name not in needs:
            raise LabError(f"kernel {version} has no module {name}")
        path, *before = needs[name]
        ordered += [file for file in (*before, path) if file not in ordered]
    return [f"{base}/{path}" for path in ordered]


def module_name(path):
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


def make_initramfs(target, config, root, version):
    """Writes the first file system: busybox, the modules, both programs of the lab, and `config`."""
    with tempfile.TemporaryDirectory(dir=HOME, prefix=".initramfs-") as tree:
        for directory in ("bin", "modules", "lab"):
            os.mkdir(f"{tree}/{directory}")
        shutil.copy(BUSYBOX, f"{tree}/bin/busybox")
        shutil.copy(f"{LAB}/init.sh", f"{tree}/init")
        for path in (f"{tree}/init", f"{tree}/bin/busybox"):
            os.chmod(path, 0o755)
        files = module_files(root, version, MODULES)
        for path in files:
            shutil.copy(path, f"{tree}/modules")
        with open(f"{tree}/modules.list", "w", encoding="utf-8") as file:
            file.writelines(f"{os.path.basename(path)}\n" for path in files)
        for name in ("inside.py", "wire.py"):
            shutil.copy(f"{LAB}/{name}", f"{tree}/lab")
        with open(f"{tree}/lab/config.json", "w", encoding="utf-8") as file:
            json.dump(config, file)
        pack(tree, target)


def pack(tree, target):
    found = [os.path.join(at, name) for at, directories, files in os.walk(tree) for name in directories + files]
    names = [os.path.relpath(path, tree) for path in found]
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        try:
            subprocess.run(
                ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
                input="\n".join(names).encode(), stdout=file, cwd=tree, check=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise LabError("making the lab's initramfs: `cpio` is not installed; run `make setup`") from None
