//! Interfaces, the default route, and who answers names.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::cmdline::Settings;
use super::{During, Failure, report, wait_for};
use crate::sys::Interface;

/// The guest's one network card.
const CARD: &str = "eth0";
/// What the kernel lets set for IPv6; absent in a kernel without it.
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// Brings up the loopback interface and, with an address given, the network card.
pub(super) fn configure(settings: &Settings) -> Result<(), Failure> {
    let loopback = || {
        let interface = Interface::new("lo")?;
        interface.set_address(Ipv4Addr::LOCALHOST, 8)?;
        interface.set_up()
    };
    keep_to_ipv4(Path::new(IPV6)).during(|| format!("switch off IPv6 in {IPV6}"))?;
    loopback().during(|| "bring up the loopback interface".into())?;
    if let Some((address, prefix)) = settings.address {
        wait_for(&Path::new("/sys/class/net").join(CARD))?;
        let card = || {
            let interface = Interface::new(CARD)?;
            interface.set_address(address, prefix)?;
            interface.set_up()?;
            settings.gateway.map_or(Ok(()), |gateway| interface.add_default_route(gateway))
        };
        card().during(|| format!("configure {CARD} as {address}/{prefix}"))?;
    }
    if !settings.dns.is_empty()
        && let Err(e) = write_resolv_conf(Path::new("/etc/resolv.conf"), &settings.dns)
    {
        report("warning", &Failure::new("write /etc/resolv.conf", e));
    }
    Ok(())
}

/// Switches IPv6 off but for the loopback interface, where programs may well listen on `::1`: nothing carries it beyond
/// the guest, and programs that find an IPv6 address would try it first and wait.
fn keep_to_ipv4(settings: &Path) -> io::Result<()> {
    for (interface, off) in [("all", "1"), ("default", "1"), ("lo", "0")] {
        match fs::write(settings.join(interface).join("disable_ipv6"), off) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

/// Replaces the file, also where it is a link to what some resolver daemon would keep.
fn write_resolv_conf(path: &Path, servers: &[IpAddr]) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|old| old.is_symlink()) {
        fs::remove_file(path)?;
    }
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_is_switched_off_where_there_is_any() {
        let dir = tempfile::tempdir().unwrap();
        keep_to_ipv4(dir.path()).unwrap();
        for interface in ["all", "default", "lo"] {
            fs::create_dir(dir.path().join(interface)).unwrap();
            fs::write(dir.path().join(interface).join("disable_ipv6"), "?").unwrap();
        }
        keep_to_ipv4(dir.path()).unwrap();
        let of = |interface| fs::read_to_string(dir.path().join(interface).join("disable_ipv6")).unwrap();
        assert_eq!([of("all"), of("default"), of("lo")], ["1", "1", "0"]);
    }

    #[test]
    fn resolv_conf_is_written_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let servers = ["1.1.1.1".parse().unwrap(), "8.8.8.8".parse().unwrap()];
        let expected = "nameserver 1.1.1.1\nnameserver 8.8.8.8\n";
        for prepare in [
            &(|_: &Path| {}) as &dyn Fn(&Path),
            &|path| fs::write(path, "old, and longer than what is written in its place, by far").unwrap(),
            &|path| std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", path).unwrap(),
        ] {
            let _ = fs::remove_file(&path);
            prepare(&path);
            write_resolv_conf(&path, &servers).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
            assert!(fs::symlink_metadata(&path).unwrap().is_file());
        }
    }
}
