//! Holds the workspace's arrows against what Cargo says: a lower crate never imports an upper one, and siblings
//! never import each other.

use std::collections::{BTreeMap, BTreeSet};

/// Every crate of the workspace with the workspace crates that it may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("wrenn-base", &[]),
    ("wrenn-vmm", &["wrenn-base"]),
    ("wrenn-uffd", &["wrenn-base"]),
    ("wrenn-storage", &["wrenn-base"]),
    ("wrenn-pager", &["wrenn-base", "wrenn-uffd", "wrenn-storage"]),
    ("wrenn-net", &["wrenn-base"]),
    ("wrenn-agent-api", &["wrenn-base"]),
    ("wrenn-agent", &["wrenn-agent-api"]),
    ("wrenn-monitor", &["wrenn-base", "wrenn-vmm"]),
    (
        "wrenn-core",
        &["wrenn-base", "wrenn-vmm", "wrenn-pager", "wrenn-storage", "wrenn-net", "wrenn-agent-api"],
    ),
    ("wrenn-host", &["wrenn-base", "wrenn-agent-api", "wrenn-core"]),
    ("wrenn-server", &["wrenn-base", "wrenn-agent-api", "wrenn-core", "wrenn-host"]),
    ("wrenn-cli", &["wrenn-core", "wrenn-host", "wrenn-server", "wrenn-agent-api"]),
    ("wrenn", &["wrenn-core", "wrenn-monitor", "wrenn-pager"]),
];

/// Crates that only the edges of the workspace may know: core knows neither HTTP servers nor databases.
const NEVER_IN_CORE: &[&str] = &["axum", "sqlx", "tower-http", "clap"];

/// The workspace's packages with their direct, non-development dependencies.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .other_options(["--offline".to_owned(), "--locked".to_owned()])
        .no_deps()
        .exec()
        .expect("cargo metadata describes the workspace");
    let direct = |package: &cargo_metadata::Package| {
        let normal =
            package.dependencies.iter().filter(|d| d.kind != cargo_metadata::DependencyKind::Development);
        normal.map(|d| d.name.clone()).collect()
    };
    metadata.packages.iter().map(|package| (package.name.to_string(), direct(package))).collect()
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let packages = dependencies();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for (package, dependencies) in &packages {
        let Some(may) = allowed.get(package.as_str()) else {
            wrong.push(format!("{package} is not in the table of layers"));
            continue;
        };
        for dependency in dependencies.iter().filter(|d| packages.contains_key(*d)) {
            if !may.contains(&dependency.as_str()) {
                wrong.push(format!("{package} must not depend on {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(packages.len(), ALLOWED.len(), "the table names a crate that is gone");
}

#[test]
fn the_core_knows_no_server() {
    let packages = dependencies();
    for (package, dependencies) in &packages {
        if matches!(package.as_str(), "wrenn-cli" | "wrenn-server") {
            continue;
        }
        for banned in NEVER_IN_CORE {
            assert!(!dependencies.contains(*banned), "{package} depends on {banned}");
        }
    }
}
