//! The web page: its files, which are part of the program, and the headers that they are served with.
//!
//! The page itself is asked for anew each time and names its other files by a path with the digest of them all, so those
//! may be kept for ever. It uses the API as any client does: nothing here knows who asks.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::api::{Code, Error};
use crate::app::App;

/// Only what comes from this server is loaded, and only files run: a text that found its way into the page as HTML would
/// still do nothing. Of styles, elements made by scripts are let through, as the terminal writes its colours in some.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; style-src-elem 'self' 'unsafe-inline'; \
    img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// What the page has where the path of its files goes.
const PLACE: &str = "@ASSETS@";

const PAGE: &str = include_str!("../web/index.html");

macro_rules! files {
    ($($path:literal,)+) => {
        &[$(($path, include_bytes!(concat!("../web/", $path)))),+]
    };
}

/// All that the page loads.
const FILES: &[(&str, &[u8])] = files![
    "css/base.css",
    "css/controls.css",
    "css/layout.css",
    "css/parts.css",
    "css/views.css",
    "favicon.svg",
    "js/api.js",
    "js/dialogs.js",
    "js/dom.js",
    "js/format.js",
    "js/icons.js",
    "js/main.js",
    "js/poll.js",
    "js/sandbox-actions.js",
    "js/session.js",
    "js/shell.js",
    "js/views/account.js",
    "js/views/activity.js",
    "js/views/enter.js",
    "js/views/files.js",
    "js/views/hosts.js",
    "js/views/keys.js",
    "js/views/new-sandbox.js",
    "js/views/overview.js",
    "js/views/sandbox.js",
    "js/views/sandboxes.js",
    "js/views/snapshots.js",
    "js/views/team.js",
    "js/views/terminal.js",
    "vendor/xterm-addon-fit/LICENSE",
    "vendor/xterm-addon-fit/addon-fit.mjs",
    "vendor/xterm/LICENSE",
    "vendor/xterm/xterm.css",
    "vendor/xterm/xterm.mjs",
];

/// The page and its files, ready to be sent.
struct Site {
    page: Bytes,
    page_etag: HeaderValue,
    /// The digest of all files.
    version: String,
    files: HashMap<&'static str, &'static [u8]>,
}

static SITE: LazyLock<Site> = LazyLock::new(Site::assemble);

impl Site {
    fn assemble() -> Self {
        let mut digest = Sha256::new();
        for (path, contents) in FILES {
            for part in [path.as_bytes(), contents] {
                digest.update((part.len() as u64).to_le_bytes());
                digest.update(part);
            }
        }
        let version = short(&digest.finalize());
        let page = PAGE.replace(PLACE, &format!("/assets/{version}"));
        let page_etag = format!("\"{}\"", short(&Sha256::digest(&page)));
        Self {
            page: page.into(),
            page_etag: HeaderValue::try_from(page_etag).expect("hexadecimal digits go in a header"),
            version,
            files: FILES.iter().copied().collect(),
        }
    }
}

/// Enough of a digest to tell versions of this page apart.
fn short(digest: &[u8]) -> String {
    digest.iter().take(10).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(page))
        .route("/test", get(page))
        .route("/favicon.ico", get(icon))
        .route("/assets/{version}/{*path}", get(file))
}

async fn page(headers: HeaderMap) -> Response {
    let site = &*SITE;
    let caching = [
        (header::ETAG, site.page_etag.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    if is_known(&headers, &site.page_etag) {
        return (StatusCode::NOT_MODIFIED, caching, guarded()).into_response();
    }
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))];
    (caching, kind, guarded(), site.page.clone()).into_response()
}

/// Whether the client has what that tag stands for.
fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|known| known.to_str().ok());
    let etag = etag.to_str().unwrap_or_default();
    known.flat_map(|known| known.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag
    })
}

/// What the page is not to be used for.
fn guarded() -> [(HeaderName, HeaderValue); 5] {
    [
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    ]
}

async fn icon() -> Result<Response, Error> {
    served("favicon.svg", "no-cache")
}

/// Serves a file of this version of the page, and of no other: under another's path it would be kept for ever.
async fn file(Path((version, path)): Path<(String, String)>) -> Result<Response, Error> {
    if version != SITE.version {
        return Err(none());
    }
    served(&path, "public, max-age=31536000, immutable")
}

fn served(path: &str, caching: &'static str) -> Result<Response, Error> {
    let contents = SITE.files.get(path).copied().ok_or_else(none)?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind(path))),
        (header::CACHE_CONTROL, HeaderValue::from_static(caching)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    ];
    Ok((headers, Bytes::from_static(contents)).into_response())
}

fn none() -> Error {
    Code::NotFound.because("there is no such path")
}

fn kind(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn below(directory: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, root, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn every_file_of_the_page_is_listed() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/web"));
        let mut found = BTreeSet::new();
        below(root, root, &mut found);
        for own in ["index.html", "vendor/README.md"] {
            assert!(found.remove(own), "{own}");
        }
        let listed: BTreeSet<String> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(found, listed);
    }

    /// The browser enforces the same, but only where the code runs.
    #[test]
    fn no_script_of_ours_makes_html_of_text() {
        for (path, contents) in FILES.iter().filter(|(path, _)| path.starts_with("js/")) {
            let text = std::str::from_utf8(contents).unwrap();
            for sink in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"]
            {
                assert!(!text.contains(sink), "{path}: {sink}");
            }
        }
    }

    #[test]
    fn the_page_has_no_script_or_style_in_itself_and_loads_nothing_from_elsewhere() {
        assert!(!PAGE.contains("style=") && !PAGE.contains("<style") && !PAGE.contains("://"), "{PAGE}");
        for script in PAGE.split("<script").skip(1) {
            assert!(script.contains("src=\"@ASSETS@/") && script.contains("></script>"), "{script}");
        }
    }

    #[test]
    fn a_tag_is_known_in_whatever_list_it_stands() {
        let etag = HeaderValue::from_static("\"a\"");
        let asked = |known: &'static str| {
            HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(known))])
        };
        for known in ["\"a\"", "\"b\", \"a\"", "W/\"a\"", "*"] {
            assert!(is_known(&asked(known), &etag), "{known}");
        }
        assert!(!is_known(&asked("\"b\""), &etag) && !is_known(&HeaderMap::new(), &etag));
    }
}
