//! Paths as clients give them.

/// The absolute path that `path` means to somebody whose home is `home`, without `.`, `..` and doubled slashes.
///
/// `~` and `~/…` and relative paths start at the home. `..` is taken lexically, as E2B's agent does, and does not
/// lead above the root.
pub(crate) fn resolve(path: &str, home: &str) -> String {
    let from_home = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Some(rest.trim_start_matches('/')),
        _ if path.starts_with('/') => None,
        _ => Some(path),
    };
    match from_home {
        Some(rest) => clean(&format!("{home}/{rest}")),
        None => clean(path),
    }
}

fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_as_a_shell_would() {
        for (path, expected) in [
            ("/a/b", "/a/b"),
            ("/a//b/./c/", "/a/b/c"),
            ("/a/../../../b", "/b"),
            ("a.txt", "/home/user/a.txt"),
            ("../x", "/home/x"),
            ("~", "/home/user"),
            ("~/x", "/home/user/x"),
            ("~//x", "/home/user/x"),
            ("~other/x", "/home/user/~other/x"),
            ("", "/home/user"),
            ("/", "/"),
        ] {
            assert_eq!(resolve(path, "/home/user"), expected, "{path}");
        }
        assert_eq!(resolve("x", "/"), "/x");
    }
}
