//! The system calls for which there is no safe wrapper.

use std::ffi::CString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::ioctl::{NoArg, Setter, ioctl, opcode};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Gid, Uid};
use tokio::io::unix::AsyncFd;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Makes `command` lead a session of its own, in `cwd`, as `identity` (`None`: as this process).
///
/// With `terminal` its standard input becomes the session's controlling terminal.
pub(crate) fn enter_on_exec(command: &mut Command, identity: Option<Identity>, cwd: CString, terminal: bool) {
    let identity = identity.map(|identity| {
        let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid), groups)
    });
    let enter = move || -> io::Result<()> {
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Some((uid, gid, groups)) = &identity {
            rustix::thread::set_thread_groups(groups)?;
            rustix::thread::set_thread_gid(*gid)?;
            rustix::thread::set_thread_uid(*uid)?;
        }
        // Last, so that the directory's permissions count for the user.
        rustix::process::chdir(cwd.as_c_str())?;
        Ok(())
    };
    // SAFETY: the closure runs in the forked child of a process with threads, so it may only do what is
    // async-signal-safe: it makes system calls on memory that was allocated before the fork.
    unsafe {
        command.pre_exec(enter);
    }
}

/// Keeps commands from inheriting whatever descriptors this process was started with, but the standard streams.
pub(crate) fn keep_descriptors_from_commands() -> io::Result<()> {
    // SAFETY: the call changes a flag of descriptors, and closes none.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers a non-blocking descriptor with the current tokio runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and AsyncFd keeps it.
    Ok(unsafe { AsyncFd::register(fd)? })
}

/// Adds `bytes` to the kernel's random generator, credits them in full, and has it reseed at once.
///
/// Format: `struct rand_pool_info` of linux/random.h (two ints, then the bytes).
pub(crate) fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    const MAX: usize = 512;
    #[repr(C)]
    struct PoolInfo {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; MAX],
    }
    // _IOW('R', 3, int[2]) and _IO('R', 7); the first one's size is what the kernel's header says, not ours.
    const RNDADDENTROPY: rustix::ioctl::Opcode = opcode::write::<[libc::c_int; 2]>(b'R', 3);
    const RNDRESEEDCRNG: rustix::ioctl::Opcode = opcode::none(b'R', 7);

    let random = std::fs::File::options().read(true).write(true).open("/dev/random")?;
    for piece in bytes.chunks(MAX) {
        let len = piece.len() as libc::c_int;
        let mut info = PoolInfo { entropy_count: len * 8, buf_size: len, buf: [0; MAX] };
        info.buf[..piece.len()].copy_from_slice(piece);
        // SAFETY: RNDADDENTROPY reads a rand_pool_info whose buf_size says how many bytes follow; they do.
        unsafe { ioctl(&random, Setter::<RNDADDENTROPY, PoolInfo>::new(info))? };
    }
    // SAFETY: RNDRESEEDCRNG takes no argument.
    unsafe { ioctl(&random, NoArg::<RNDRESEEDCRNG>::new())? };
    Ok(())
}

/// Grows the mounted ext4 file system that `root` is in to `blocks` of its own blocks.
pub(crate) fn resize_ext4(root: impl AsFd, blocks: u64) -> io::Result<()> {
    // EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h.
    const RESIZE_FS: rustix::ioctl::Opcode = opcode::write::<u64>(b'f', 16);
    // SAFETY: the request reads one u64 that we pass by pointer.
    unsafe { ioctl(root, Setter::<RESIZE_FS, u64>::new(blocks))? };
    Ok(())
}

/// A network interface, configured by the ioctls of netdevice(7).
pub(crate) struct Interface {
    name: [libc::c_char; libc::IFNAMSIZ],
    socket: OwnedFd,
}

impl Interface {
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let mut buffer = [0; libc::IFNAMSIZ];
        // One byte stays for the terminating NUL.
        if name.is_empty() || name.len() >= buffer.len() || !name.is_ascii() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no interface name: {name:?}")));
        }
        for (to, from) in buffer.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        Ok(Self { name: buffer, socket })
    }

    pub(crate) fn set_address(&self, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
        self.request(libc::SIOCSIFADDR, libc::__c_anonymous_ifr_ifru { ifru_addr: sockaddr(address) })?;
        self.request(libc::SIOCSIFNETMASK, libc::__c_anonymous_ifr_ifru { ifru_netmask: sockaddr(mask) })
    }

    pub(crate) fn set_up(&self) -> io::Result<()> {
        let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.request(libc::SIOCSIFFLAGS, libc::__c_anonymous_ifr_ifru { ifru_flags: flags })
    }

    /// Sends everything without a better route through `gateway`, which must be on a connected network.
    pub(crate) fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: rtentry is plain data for which all zeroes is a value (no device, no metrics).
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = sockaddr(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: SIOCADDRT reads an rtentry, which outlives the call; its device pointer is null, meaning any.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn request(&self, request: libc::c_ulong, argument: libc::__c_anonymous_ifr_ifru) -> io::Result<()> {
        let interface = libc::ifreq { ifr_name: self.name, ifr_ifru: argument };
        // SAFETY: the SIOCSIF* requests read an ifreq, which outlives the call; the callers set the member of
        // its union that the request reads.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), request, &raw const interface) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// An IPv4 address as the `struct sockaddr` that the old ioctls want.
fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0 as libc::c_char; 14];
    // sockaddr_in: two bytes of port, then the address in network order.
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_layout_of_sockaddr_in() {
        let plain = sockaddr(Ipv4Addr::new(169, 254, 0, 21));
        let bytes: Vec<u8> = plain.sa_data.iter().map(|byte| *byte as u8).collect();
        assert_eq!(bytes[..8], [0, 0, 169, 254, 0, 21, 0, 0]);
        assert_eq!(i32::from(plain.sa_family), libc::AF_INET);
    }

    #[test]
    fn interface_names_are_checked() {
        assert!(Interface::new("eth0").is_ok());
        for bad in ["", "abcdefghijklmnop", "é"] {
            assert!(Interface::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_kernel_takes_entropy_from_root() {
        match add_entropy(&[7; 32]) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("SKIP: not allowed to add entropy here: {e}");
            }
            result => result.unwrap(),
        }
    }
}
