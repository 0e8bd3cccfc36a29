//! Users and groups, read from `/etc/passwd` and `/etc/group`.
//!
//! The agent is one static binary, so there is no name service to ask; images for sandboxes have files.
//! Malformed lines are skipped, as the C library does. The files are read anew each time: commands change them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::sys::Identity;

/// No passwd file of a sandbox is larger; a larger one is cut here.
const MAX_FILE: u64 = 4 << 20;

/// A user of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) home: String,
    pub(crate) identity: Identity,
}

impl User {
    /// Finds a user by name. `root` always exists, even in an image that has no user database.
    pub(crate) fn find(name: &str) -> io::Result<Option<Self>> {
        let passwd = read(Path::new("/etc/passwd"))?;
        let Some((uid, gid, home)) = find_in_passwd(&passwd, name) else {
            return Ok((name == "root").then(Self::bare_root));
        };
        let groups = groups_of(&read(Path::new("/etc/group"))?, name, gid);
        let home = if home.starts_with('/') { home } else { "/".into() };
        Ok(Some(Self { name: name.into(), home, identity: Identity { uid, gid, groups } }))
    }

    fn bare_root() -> Self {
        let home = if Path::new("/root").is_dir() { "/root" } else { "/" };
        let identity = Identity { uid: 0, gid: 0, groups: vec![0] };
        Self { name: "root".into(), home: home.into(), identity }
    }
}

/// The names of all users and groups, by number.
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads both files; what can't be read has no names.
    pub(crate) fn read() -> Self {
        let names = |path| names_by_number(&read(Path::new(path)).unwrap_or_default());
        Self { users: names("/etc/passwd"), groups: names("/etc/group") }
    }

    /// A user's name, or number.
    pub(crate) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// A group's name, or number.
    pub(crate) fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

/// Of `name:password:number:…`; the first name of a number counts.
fn names_by_number(file: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in file.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(number)) =
            (fields.next(), fields.nth(1).and_then(|field| field.parse().ok()))
        {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

/// A file's text, lossy; nothing if it is not there.
fn read(path: &Path) -> io::Result<String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(e),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// `name:password:uid:gid:comment:home:shell`, see passwd(5). Gives uid, gid and home.
fn find_in_passwd(passwd: &str, name: &str) -> Option<(u32, u32, String)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some((uid, gid, fields.nth(1)?.to_owned()))
    })
}

/// `name:password:gid:member,member`, see group(5). The primary group first, none twice.
fn groups_of(group: &str, user: &str, primary: u32) -> Vec<u32> {
    let mut groups = vec![primary];
    let members = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let gid: u32 = fields.nth(2)?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user).then_some(gid)
    });
    for gid in members {
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    // What the kernel takes (NGROUPS_MAX).
    groups.truncate(65_536);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        broken\n\
        user:x:notanumber:1\n\
        user:x:1000:1001:A User,,,:/home/user:/bin/sh\n\
        user2:x:1002:1002::relative:\n";

    #[test]
    fn finds_users_and_skips_malformed_lines() {
        assert_eq!(find_in_passwd(PASSWD, "root"), Some((0, 0, "/root".into())));
        assert_eq!(find_in_passwd(PASSWD, "user"), Some((1000, 1001, "/home/user".into())));
        for unknown in ["use", "", "broken", "root:x"] {
            assert_eq!(find_in_passwd(PASSWD, unknown), None, "{unknown}");
        }
    }

    #[test]
    fn groups_are_the_primary_and_those_that_list_the_user() {
        let group =
            "root:x:0:\nsudo:x:27:user\nmore:x:1001:user\nusers:x:100:a,user,b\nno:x:5:user2\nbad:x:z:user\n";
        assert_eq!(groups_of(group, "user", 1001), [1001, 27, 100]);
        assert_eq!(groups_of("", "user", 7), [7]);
    }

    #[test]
    fn numbers_have_the_first_name_that_is_given_them() {
        let names = names_by_number("root:x:0:0\ntoor:x:0:0\nbroken\nuser:x:1000:1000\n");
        assert_eq!(names.len(), 2);
        assert_eq!((names[&0].as_str(), names[&1000].as_str()), ("root", "user"));
        assert_eq!(Names::read().user(0), "root");
        assert_eq!(Names::read().user(4_000_000_000), "4000000000");
    }

    #[test]
    fn root_is_always_there() {
        assert_eq!(User::find("root").unwrap().unwrap().identity.uid, 0);
        assert_eq!(User::find("no-such-user-here").unwrap(), None);
    }
}
