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

/// Brings up the loopback interface and, with an address given, the network card.
pub(super) fn configure(settings: &Settings) -> Result<(), Failure> {
    let loopback = || {
        let interface = Interface::new("lo")?;
        interface.set_address(Ipv4Addr::LOCALHOST, 8)?;
        interface.set_up()
    };
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
