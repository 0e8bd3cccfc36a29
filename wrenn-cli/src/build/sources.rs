//! Where this machine gets Debian packages from: its own apt configuration, mirrors and proxies included.

use std::collections::BTreeMap;
use std::path::Path;

use super::BuildError;
use crate::progress::Step;
use crate::tool::Tool;

/// The Debian release that images are made of.
pub(crate) const RELEASE: &str = "bookworm";

/// What Debian signs its archives with, from its package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Debian's own servers: what a guest uses, and a machine that is not Debian itself.
pub(crate) const PUBLIC: &str = "\
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
";

/// Settings of apt that say how to reach a mirror; the rest concerns the machine only.
const SETTINGS: [&str; 10] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Retries",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Max-ValidTime",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
    "Acquire::Queue-Mode",
    "Acquire::By-Hash",
];

/// How to get packages: lines for a sources.list, and settings for apt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    pub(crate) lines: Vec<String>,
    pub(crate) settings: Vec<String>,
}

impl Sources {
    /// The machine's own. Where it has none for Debian's release, Debian's public ones.
    ///
    /// # Errors
    /// The tools' own failures.
    pub(crate) fn of_this_machine(step: &Step) -> Result<Self, BuildError> {
        let format = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(ORIGIN)";
        let targets = Tool::find("apt-get", "apt")?.args(["indextargets", "--format", format]).run(step)?;
        let settings = Tool::find("apt-config", "apt")?
            .args(["dump", "--format", "%F \"%v\"%n", "Acquire"])
            .run(step)?;
        let signed_by = Path::new(KEYRING).exists().then_some(KEYRING);
        Ok(Self {
            lines: source_lines(&String::from_utf8_lossy(&targets), signed_by),
            settings: useful_settings(&String::from_utf8_lossy(&settings)),
        })
    }
}

/// Source lines from apt's own list of what it fetches.
fn source_lines(targets: &str, signed_by: Option<&str>) -> Vec<String> {
    let mut components: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for target in targets.lines() {
        let fields: Vec<_> = target.split('|').collect();
        let ["Packages", uri, release, codename, component, origin] = fields[..] else { continue };
        // What apt does not know, before its lists were first fetched, it leaves as it stands in the format.
        let debian = origin == "Debian" || origin.starts_with('$');
        if debian && [release, codename].iter().any(|name| name.starts_with(RELEASE)) {
            let list = components.entry((uri, release)).or_default();
            if !list.contains(&component) {
                list.push(component);
            }
        }
    }
    let option = signed_by.map_or_else(String::new, |keyring| format!("[signed-by={keyring}] "));
    if components.is_empty() {
        return PUBLIC.lines().map(|line| line.replacen("deb ", &format!("deb {option}"), 1)).collect();
    }
    let lines = components.iter();
    lines.map(|((uri, release), list)| format!("deb {option}{uri} {release} {}", list.join(" "))).collect()
}

/// Those of apt's settings that matter for reaching a mirror, and have a value.
fn useful_settings(dump: &str) -> Vec<String> {
    let useful = |line: &&str| SETTINGS.iter().any(|name| line.starts_with(name)) && !line.ends_with(" \"\"");
    dump.lines().filter(useful).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_debian_sources_are_used_and_no_others() {
        let targets = "\
Packages|http://mirror/debian-security/|bookworm-security|bookworm-security|main|Debian
Packages|http://mirror/debian/|oldstable|bookworm|main|Debian
Packages|http://mirror/debian/|oldstable|bookworm|contrib|Debian
DEP-11|http://mirror/debian/|oldstable|bookworm|main|Debian
Packages|https://deb.nodesource.com/node_20.x/|nodistro|nodistro|main|. nodistro
Packages|http://mirror/debian/|trixie|trixie|main|Debian
Packages|http://mirror/ubuntu/|bookworm|bookworm|main|Ubuntu
nonsense
";
        assert_eq!(
            source_lines(targets, Some("/k.gpg")),
            [
                "deb [signed-by=/k.gpg] http://mirror/debian-security/ bookworm-security main",
                "deb [signed-by=/k.gpg] http://mirror/debian/ oldstable main contrib",
            ]
        );
        let never_updated = "Packages|http://mirror/debian/|bookworm|$(CODENAME)|main|$(ORIGIN)\n";
        assert_eq!(source_lines(never_updated, None), ["deb http://mirror/debian/ bookworm main"]);
    }

    #[test]
    fn a_machine_without_any_uses_the_public_ones() {
        let lines = source_lines("Packages|http://x/ubuntu/|noble|noble|main|Ubuntu\n", Some("/k.gpg"));
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], "deb [signed-by=/k.gpg] http://deb.debian.org/debian bookworm main");
    }

    #[test]
    fn proxies_and_dates_are_passed_on_and_nothing_else() {
        let dump = "Acquire \"\"\nAcquire::http::Proxy \"http://proxy:3128\"\nAcquire::http \"\"\n\
                    Acquire::https::CaInfo \"\"\nAcquire::Check-Valid-Until \"false\"\nAcquire::cdrom::mount \"/x\"\n\
                    Acquire::Languages:: \"none\"\n";
        assert_eq!(
            useful_settings(dump),
            ["Acquire::http::Proxy \"http://proxy:3128\"", "Acquire::Check-Valid-Until \"false\"",]
        );
    }
}
